// SPDX-License-Identifier: Apache-2.0

// Package vm starts one QEMU with the adapter behind a virtual IOMMU, watches its
// console, and holds the control channel to the guest.
//
// Ways a machine ends, of which the first noticed counts ([VM.Wait]): switched off by
// the guest (nil), stopped by us (nil), [ErrPanic], [ErrKVM], or QEMU's own death. Every
// wait is bounded by the caller's context; errors name the phase.
//
//	New ── Start ──> connecting ──> guest's hello ──> modules, bind, serve ──> ready
//	                     │                │                    │
//	                     └── QEMU ended, panic, KVM gave up, context over ──> error
//
// Files of a run go to Config.Dir, sockets to Config.SocketDir, whose path must be
// short: a unix socket's holds 107 bytes. Both belong to the caller.
//
// A VM is safe for concurrent use.
package vm
