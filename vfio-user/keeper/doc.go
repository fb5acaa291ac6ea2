// SPDX-License-Identifier: Apache-2.0

// Package keeper keeps a virtual machine's device alive while the program that
// serves it over vfio-user is restarted, replaced, or dies. QEMU's client never
// connects again: once its server goes, the device is gone. So a [Keeper] stands
// between, a server towards QEMU (the client, below) and a client towards the
// device server (the server), which it starts itself. It knows nothing of any
// particular device. The protocol is that of package vfiouser.
//
//	QEMU ---socket--- keeper ---socket--- server, generation 1, 2, 3 ...
//	  \________ guest memory, eventfds _________/
//
// Guest memory and eventfds pass straight through: only register accesses take
// the extra hop.
//
// # What a new server gets
//
// First the version that was agreed on, then every DMA map that there is, one
// request after another without waiting, then the eventfds, masks and the
// resampling of interrupts, so that a device which has something to say the
// moment it is allowed to is heard, then the final values of the ROM BAR, the BARs, the
// interrupt line, PCIe device control, MSI and MSI-X control, Command and PM
// control, as far as the client has written them since the last reset. Never is
// a log replayed, a function reset or a bit written that clears by writing 1:
// PME status and the bit for a function level reset are masked out, and the
// status registers are not touched.
//
// Maps are put back one for one. Adjacent ones are not made into one: the
// client may take away each alone, which cuts the merged one in two. A server
// refuses that (EINVAL in type 1 v2), and taking the whole away and the rest back
// opens a gap under a device that runs.
//
// # Who may touch memory
//
// A server is started only after the one before, with all of its process group,
// was reaped; so two never write to the same memory. A client's unmap is answered
// by a server that has done it, or after the server that had the map was reaped,
// or when the new one, which has not been given Command yet, will be told.
// Answers of the client to DMA messages of a dead server are dropped; the ids of
// messages are the keeper's own in both directions.
//
// # What the client sees
//
// A request that a server dies over is given to the next one, if it is a read;
// a write may be lost, or done twice, and a device and its driver have to tolerate
// both. Requests that arrive while there is no server wait for one in order, but
// for what the keeper can do itself: maps, unmaps, interrupts and reset. A request
// that has waited for Config.Patience is answered in the server's stead, reads of
// configuration space from what was last seen there, other reads with all ones,
// and writes are accepted and dropped; from then on that goes for each request,
// at once, until a server is ready. A server that has left a request unanswered
// for that long, or does not read for Config.SendTimeout, is ended: first by
// SIGQUIT, for the stacks of its goroutines. QEMU gives up after 5 s.
//
// A server that presents another device (number and size of regions, interrupts,
// identity, capabilities, less than the agreed version) is refused with an error
// that names the difference, and the keeper goes on trying. A server that ends
// soon after its start is started again after a pause that doubles.
//
// Areas of regions that could be mapped, I/O region fds and the twin socket are
// left out of what the client is told, since they would not survive. Migration
// and dirty logging pass through, but their state is not put back.
//
// # Ownership and concurrency
//
// Of the client's memory one file descriptor is kept for each distinct file, of
// interrupts one for each vector. A Keeper is safe for concurrent use. It has no
// debug variable of its own; VFIOUSERDEBUG=1 is passed on to the server.
package keeper
