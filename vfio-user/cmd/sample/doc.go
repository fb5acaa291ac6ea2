// SPDX-License-Identifier: Apache-2.0

// Command sample serves the device that libvfio-user's client sample talks to.
//
//	go run ./vfio-user/cmd/sample --socket-path=PATH
//	go run ./vfio-user/cmd/sample --fd=N
//	sample [-v] PATH
//
// It follows the conventions for backend programs in QEMU
// docs/interop/vfio-user.rst: it stays in the foreground, keeps standard input
// and output as they are, and ends with status 0 on SIGTERM or SIGINT. With a path
// it serves one client after another; a socket that a killed process left there
// is replaced. The socket of --fd may be one that listens or a connection, with
// whose end the program ends.
//
// The last form is the one in which the client sample starts the server that it
// migrates the device to, a program called server beside itself; it serves one
// client and ends with it. With -v every alarm's outcome is told on standard error.
//
// Exit status: 0 told to end, 1 could not go on, 2 usage.
package main
