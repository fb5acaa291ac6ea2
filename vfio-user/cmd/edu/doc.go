// SPDX-License-Identifier: Apache-2.0

// Command edu serves QEMU's teaching device over vfio-user.
//
//	go run ./vfio-user/cmd/edu --socket-path=PATH
//	go run ./vfio-user/cmd/edu --fd=N
//
// It follows the conventions for backend programs in QEMU
// docs/interop/vfio-user.rst: it stays in the foreground, keeps standard input
// and output as they are, and ends with status 0 on SIGTERM or SIGINT. With
// --socket-path it serves one client after another; a socket that a killed
// process left at the path is replaced. The socket of --fd may be one that
// listens or a connection, with whose end the program ends.
//
// Exit status: 0 told to end, 1 could not go on, 2 usage.
package main
