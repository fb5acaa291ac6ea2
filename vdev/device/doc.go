// SPDX-License-Identifier: Apache-2.0

// Package device assembles an adapter: Ethernet port, capture, engine,
// firmware, PCI function, and the vfio-user server that offers it to QEMU.
//
//	client ── vfiouser.Server ── vdev.Function ── firmware.Firmware ── engine ── [capture] ── port
//
// [New] makes one; [Device.Serve] offers it on a socket. Buses that call the
// function directly give their own memory and interrupts and do not serve.
//
// A Device owns all its parts, the port, the forwarded listeners and the
// capture's writer included, from the call of New on, also when that fails. Its
// methods are safe for concurrent use. VFIOUSERDEBUG=1 shows the messages of
// vfio-user.
package device
