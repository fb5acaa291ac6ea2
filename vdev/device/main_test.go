// SPDX-License-Identifier: Apache-2.0

package device

import (
	"testing"

	"toebox/firmware"
	"toebox/firmware/chip"
	"toebox/vdev"
	"toebox/vfio-user/vfiousertest"
)

// tree is the tree's own firmware.
func tree(c chip.Config) (vdev.Firmware, vdev.Counters) {
	f := firmware.New(c)
	return f, f.Counters()
}

func TestMain(m *testing.M) { vfiousertest.Main(m) }
