// SPDX-License-Identifier: Apache-2.0

// Package fragile is the tree's firmware under another name, which panics when it
// gets SIGUSR1.
package fragile

import (
	"os"
	"os/signal"
	"syscall"

	"toebox/firmware"
	"toebox/vdev"
)

// New makes the firmware.
func New(c firmware.Config) (vdev.Firmware, vdev.Counters) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() {
		<-asked
		panic("fragile: asked to")
	}()
	c.Name = "fragile 1.0"
	f := firmware.New(c)
	return f, f.Counters()
}
