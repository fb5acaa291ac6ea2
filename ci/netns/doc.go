// SPDX-License-Identifier: Apache-2.0

// Package netns makes networks in which the Linux kernel is the adapter's peer: a
// network namespace each, with a tap device that the adapter is plugged into.
//
//	adapter ── port.Tap ── tap device ── TCP/IP of the kernel ── sockets of package peer
//
// It takes CAP_SYS_ADMIN and CAP_NET_ADMIN, of root or of a user namespace, and
// access to /dev/net/tun; [ErrPrivilege] says that they are missing.
//
// # Ownership and concurrency
//
// A Network owns namespace and device until Close; sockets made in [Network.Do]
// and the file of [Network.Net] are their makers', and keep both alive. All
// methods are safe for concurrent use. No thread of the process stays in the
// namespace.
package netns
