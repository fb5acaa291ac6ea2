// SPDX-License-Identifier: Apache-2.0

// Package backend is what a program that serves a vfio-user device does with the
// socket that it was given, by the conventions for backend programs in QEMU
// docs/interop/vfio-user.rst: --socket-path=PATH or --fd=FDNUM. What else these
// ask for, the program does itself: stay in the foreground and end on SIGTERM.
//
// Its functions keep nothing and may be called from any goroutine.
package backend
