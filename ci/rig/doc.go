// SPDX-License-Identifier: Apache-2.0

// Package rig puts adapters together for the conformance kit: a whole device
// behind the nat port, a bus of the ladder in front of it, and a peer on the
// host's loopback.
//
// [Inproc] is function calls within the process, [QTest] the same device in
// this process served to a QEMU without a guest. The rung in a virtual machine
// is started by images; the kit runs inside the guest there.
//
// A [Rig] owns everything it started until Close. It serves one test at a time.
package rig
