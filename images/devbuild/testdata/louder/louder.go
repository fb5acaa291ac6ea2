// SPDX-License-Identifier: Apache-2.0

// Package louder is the tree's firmware under another name.
package louder

import (
	"toebox/firmware"
	"toebox/vdev"
)

// New makes the firmware.
func New(c firmware.Config) (vdev.Firmware, vdev.Counters) {
	c.Name = "louder 2.0"
	f := firmware.New(c)
	return f, f.Counters()
}
