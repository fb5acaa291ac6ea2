// SPDX-License-Identifier: Apache-2.0

// Package proc starts the rig's helpers (QEMU, the device) so that they neither
// outlive their parent nor hear its terminal.
//
// Each child is in a process group of its own, so that a Ctrl-C reaches only the
// parent, who ends its children in order. The kernel kills a child when the thread
// that started it ends (PR_SET_PDEATHSIG follows the thread, not the process), so
// that thread waits for the child and does nothing else.
//
// A Process is safe for concurrent use.
package proc
