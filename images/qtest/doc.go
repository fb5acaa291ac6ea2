// SPDX-License-Identifier: Apache-2.0

// Package qtest is a client of QEMU's qtest protocol (qemu/tests/qtest, QEMU 11.1):
// memory, ports, interrupts and the virtual clock of a machine whose CPUs do not
// run. It drives real QEMU devices with no guest in about 50 ms.
//
// [Client] speaks the line protocol over any net.Conn. [Start] runs a q35 machine
// with one block of RAM in a shared file, which the caller may map: everything bulky
// belongs there, the socket takes about 0.1 ms a command.
//
// A Client may be used from several goroutines; commands go out one at a time.
// After an I/O error or a time-out the stream is out of step and every call fails.
package qtest
