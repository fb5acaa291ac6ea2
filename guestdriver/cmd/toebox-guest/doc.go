// SPDX-License-Identifier: Apache-2.0

// Command toebox-guest is the guest's tool for the offload adapter.
//
// "toebox-guest serve" owns the adapter: it starts the driver, serves HTTP on
// port 80 through the adapter, and answers the other commands (ls, attr,
// stats, dial, listen, fetch) on a local socket, so that they share the one
// driver.
//
// The local protocol is one line of JSON from the client (request), one line
// of JSON back (reply), and for dial and listen the connection's bytes from
// there on, half-close included. The socket is for root in the guest only.
package main
