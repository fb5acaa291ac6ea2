// SPDX-License-Identifier: Apache-2.0

// Package control is the channel between the host and the guest: commands with
// their streams and exit status, and calls either side may make. It runs over
// virtio-serial, so never over the adapter under test, and also over the unix
// socket through which a second toebox reaches a running machine.
//
// # Protocol
//
// Frames follow one another in each direction, little endian:
//
//	0  type (8)   1 hello, 2 open, 3 data, 4 credit, 5 end, 6 message, 7 close
//	1  channel (8)  of data, credit and end: 0, 1 or 2; else 0
//	2  length (16)  of the payload, at most 32768
//	4  stream (32)  0 for hello; odd when the host opened it, even when the guest did
//	8  payload
//
// Hello comes first and once, the guest's after the host's. Open carries a [Request]; ids only grow. Data goes out
// against credit: each side starts with 256 KiB per stream, channel and direction,
// and a credit frame (32 bits) gives more as the reader reads. End closes a channel in
// the sender's direction. Message carries a [Message]. Close carries a [Result] and
// ends the stream in both directions; data that came before it can still be read, and
// frames that cross it are dropped. Anything else breaks the session.
//
// By convention a command reads channel 0 and writes 1 and 2, as file descriptors.
//
// # Memory and concurrency
//
// A session holds at most 256 streams of each side and their windows. All methods are
// safe for concurrent use, except that a channel has one reader and one writer at a
// time. The reading goroutine never writes and never waits for anything but bytes.
package control
