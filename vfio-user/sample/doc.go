// SPDX-License-Identifier: Apache-2.0

// Package sample is the device that libvfio-user's client sample (nutanix/
// libvfio-user samples/client.c) talks to, so that an implementation of vfio-user
// that is not ours can be held against the server. To try it:
//
//	go run ./vfio-user/cmd/sample --socket-path=PATH
//	client PATH
//
// It uses what a device can use: regions by message and mapped, INTx, DMA into
// guest memory and by message, dirty page logging, and migration with and without
// the machine running. The function is dead:beef, subsystem cafe:babe, with two
// memory BARs:
//
//	BAR0  0x0000  8 bytes  alarm: seconds since 1970, 0 for none
//	BAR1  0x0000  0x3000   memory, which a client may map
//
// Bytes are little-endian. What lies beyond reads as zeros and cannot be written.
// A write of all 8 bytes sets the alarm; a read yields the seconds that have
// passed since then. Either lets go of INTx.
//
// # The alarm
//
// When its time has come the device asserts INTx. Then it looks for the two DMA
// maps with the lowest addresses among those of one page (4096 bytes) that it may
// both read and write. It fills the second one, directly, with 1024 bytes each of
// A, B, C and D and reads them back, and then does the same to the first by
// messages, though it has a file. In a virtual machine there are no such maps,
// unless a driver makes some: then nothing is written.
//
// # Migration
//
// The state is BAR1 and then the alarm, 0x3008 bytes. In PRE_COPY BAR1 alone is
// given once; as a client that has mapped it can write to it without the device
// knowing, all is given again in STOP_COPY. RESUMING takes exactly as much, and
// puts it into place when it is left.
//
// # Ownership
//
// All state but the memory of BAR1 is under one lock. The device's own accesses
// to guest memory are made under it, those by message are not. Methods are safe
// for concurrent use.
package sample
