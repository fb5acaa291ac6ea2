// SPDX-License-Identifier: Apache-2.0

// Package vfiouser serves PCI devices to a virtual machine monitor over
// vfio-user, the protocol that carries the kernel's VFIO interface on a UNIX
// stream socket. It knows nothing of any particular device.
//
// The normative text is QEMU docs/interop/vfio-user.rst (protocol 0.x); where
// implementations differ from it, this package follows the client in QEMU 11
// and, for the meaning of DMA map and unmap, the kernel's type1 v2 IOMMU.
// Comments name the message by its number in the specification's table.
// Supported: version, DMA map and unmap, device, region and IRQ information,
// IRQ set-up in all its forms, region read, write and write-multi, mappable
// areas of regions, ioeventfds, reset, DMA by message, the twin socket,
// migration, and logging of dirty pages. Everything else gets an error reply.
// ioregionfds are absent.
//
// # Server
//
// [Server] offers one [Device] to one client at a time. Every call into the
// device comes from the goroutine that serves the connection, one at a time,
// so a device needs no lock against the protocol; in return a slow device call
// keeps QEMU waiting, with its big lock held, and QEMU gives up after 5 s.
// The slices handed to a device belong to the connection and must not be kept.
//
// # DMA
//
// [DMA] is the one place where addresses that come from a guest are checked.
// The server owns every mapping of client memory: one mmap for each distinct
// file, whatever the number of DMA maps into it; a client may ask for pread and
// pwrite instead. Readers take no lock. A [DMA.View] callback borrows guest
// memory for its own duration; the reply to DMA unmap waits until all such
// borrows of the old map have ended, so they have to be short. Memory announced
// without a file descriptor is reached by messages; such an access takes a round
// trip, must not be made from a device call (it would wait for a reply that the
// same goroutine has to read, and gets EDEADLK; not so with a twin socket), and
// ends by its time-out at the latest.
//
// # Areas
//
// A region may have areas that a client maps into its own memory ([Area]). The
// file behind an area stays the device's; each client that asks is lent a
// descriptor, which outlives the connection if the client wants it to. [Shared]
// is such memory made for the purpose. On the client's side [Client.Areas] hands
// out files that the caller closes.
//
// # Migration
//
// A device that can be moved to another server is a [Migrator], or a [Precopier]
// if its state can be read out while it runs. The server keeps the state
// machine of [MigrationState]; the device gets the arcs and the data. Which state
// it is in is kept when a client goes, as the rest of the device's state is; a
// device that resets itself then, or by a write to a register, tells the server
// ([Server.DeviceReset]), as package pci does for its functions.
//
// Dirty pages are the server's business, for every device: while a client has
// it log them, each write through [DMA] marks the pages that it touched, by
// IOVA. Marking takes no lock; without a log it costs the load of a pointer. A
// report takes what it reports out of the log, but for pages of the log that
// reach beyond it. All writes are logged, whatever ranges a client names. A log
// that has no room left, after writes all over an address space, takes all of
// memory for dirty until it is started again.
//
// # Interrupts
//
// The server owns the eventfds of a client. [Server.Trigger] may be called
// from any goroutine and does not block, whatever the client does to an eventfd:
// the kernel signals it, by an asynchronous read that ends at once. A server that
// the kernel refuses these (fs.aio-max-nr, a seccomp filter) writes where there is
// room, and a client that fills an eventfd and turns O_NONBLOCK off between look
// and write can then hold it up.
//
// # Concurrency
//
// Methods of [Server], [DMA] and [Client] are safe for concurrent use. A device
// that is told of events ([IOEventDevice]) is called from a second goroutine.
//
// # Debugging
//
// With VFIOUSERDEBUG=1 in the environment a server writes a line for every
// message to its logger, or to standard error if it has none.
package vfiouser
