// SPDX-License-Identifier: Apache-2.0

package main

import (
	"toebox/firmware"
	"toebox/vdev"
)

// newFirmware is the firmware that this program is built with. To build with
// another, `toebox fw load --firmware` has go build take a file of the same form,
// which imports that package, for this one (-overlay).
func newFirmware(c firmware.Config) (vdev.Firmware, vdev.Counters) {
	f := firmware.New(c)
	return f, f.Counters()
}
