// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"os"

	vfiouser "toebox/vfio-user"
)

// Drop ends the connection without a word to the device.
func (b *Bus) Drop() { b.client.Close() }

// MapFile lets the device reach all of a file of size bytes at iova.
func (b *Bus) MapFile(iova, size uint64, f *os.File) error {
	return b.client.Map(iova, size, 0, vfiouser.ProtRead|vfiouser.ProtWrite, f)
}
