// SPDX-License-Identifier: Apache-2.0

// Command toebox-probe drives, inside a guest, the devices that tests of the rig
// attach besides the adapter, and two adapters at once, and does to the guest what those tests want done:
//
//	edu      the teaching device (docs/specs/edu.rst of QEMU): identification,
//	         factorials and DMA both ways, each with its interrupt
//	edu-load transfers both ways until killed
//	sample   the interoperability sample of libvfio-user: header, clock, memory
//	failover two adapters on one link, which take over a connection to an echo from
//	         each other while bytes go both ways
//	repeat   a program with its arguments, again and again until it fails or is killed
//	reboot   restarts the machine under whatever runs
//
// Devices are bound to vfio-pci and reached as the adapter is. The numbers in here
// are the devices' documentation's: nothing is shared with their code. Every wait is
// bounded; the status is 0 only if all went as documented.
package main
