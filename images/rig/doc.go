// SPDX-License-Identifier: Apache-2.0

// Package rig puts the parts together: tools, programs, image, device process and
// machine, in a run folder of their own.
//
// [Up] returns an [Instance] whose guest serves over the adapter. Other toebox
// processes find it by its folder ([Running]) and talk to its guest through its socket
// ([Dial]). Instances clean up after themselves; [Instance.Close] is idempotent.
//
// Run folders are $XDG_STATE_HOME/toebox/runs/ID, with `latest` pointing at the
// newest: cmdline, console.log, qemu.log, device.log, instance.json. Sockets are in a
// short directory elsewhere that goes with the instance.
package rig
