// SPDX-License-Identifier: Apache-2.0

// Command toebox-conformance runs the conformance kit inside a guest, against
// the adapter that it finds on the guest's PCI bus, through VFIO or UIO.
//
// It writes events as "go test -json" does to standard output, one a line. The
// peer of the adapter's network is whoever started it: calls to it are further
// lines of standard output, and the answers come on standard input (package
// peer). With -peer=none the functions that need one are skipped.
//
// No other program may have the adapter while it runs.
package main
