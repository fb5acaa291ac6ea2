// SPDX-License-Identifier: Apache-2.0

// Package rig puts the parts together: tools, programs, image, device process and
// machine, in a run folder of their own.
//
// [Up] returns an [Instance] whose guest serves over the adapter. Other toebox
// processes find it by its folder ([Running]) and talk to its guest through its socket
// ([Dial]). Instances clean up after themselves; [Instance.Close] is idempotent.
//
// Between QEMU and the device stands a keeper process (package vfio-user/keeper), which
// starts device processes; what outlasts them, sockets and capture, is opened here and
// handed on ([Instance.Load]). [Serve], for a QEMU that is somebody else's, has none: who
// wants one there starts vfio-user/cmd/keeper by hand.
//
//	QEMU ── keeper ── device, generation 1, 2 ...
//	          │ orders, reports (one socket pair)
//	       this process ── socket "load" ── toebox fw
//
// Run folders are $XDG_STATE_HOME/toebox/runs/ID, with `latest` pointing at the
// newest: cmdline, console.log, qemu.log, device.log (of keeper and
// devices), instance.json, and while it runs the device programs. Sockets are in a
// short directory elsewhere that goes with the instance.
package rig
