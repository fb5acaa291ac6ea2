// SPDX-License-Identifier: Apache-2.0

// Package uio is the guestdriver.Bus of a Linux guest without an IOMMU: a PCI
// function bound to uio_pci_generic (Documentation/driver-api/uio-howto.rst),
// its BARs and configuration space by sysfs, its interrupt by /dev/uioN.
//
// [List] finds adapters, [Bind] binds one to uio_pci_generic, [Open] opens it.
// The program needs CAP_SYS_ADMIN and CAP_SYS_RAWIO, and reserved huge pages of
// 2 MiB (hugepages=N on the kernel's command line).
//
// # Memory
//
// The adapter gets guest-physical addresses, which /proc/self/pagemap tells,
// and no hardware checks them: whoever may open the function may write any
// memory. Only huge pages are used. They do not move, and one is contiguous; an
// allocation that is larger takes a run of pages that happen to be adjacent,
// and fails where there is none.
//
// # Vectors
//
// Behind uio there is the pin, and no MSI-X. One goroutine turns INTX_CAUSE and
// INTX_QUEUES (SPEC.md §9.2) into the vectors of guestdriver.Bus, so that the
// driver above is the same as over MSI-X: it waits for its vectors and never
// sees the cause registers. Where the function has no interrupt, or with
// [Options].Poll, the goroutine looks at those registers once a millisecond.
//
// An interrupt goes round like this:
//
//	          cause                   the kernel's handler sets
//	idle ---------------> asserted ---------------------------+
//	 ^                                Interrupt Disable        v
//	 |  Interrupt Disable                                   masked
//	 +---- is cleared ---- seen <--- causes are read, -----+
//	                                 cleared, and handed on
//
// The causes are cleared before the vectors are signalled, and a read makes
// sure that the clear has arrived: what happens later sets them again. Interrupt
// Disable is cleared last; a cause that stands then interrupts at once. While
// vectors are enabled that bit is the bus's, and writes of Command leave it
// clear.
//
// A start of the firmware interrupts by MSI-X only (SPEC.md §9.3): over uio the
// driver finds new firmware when it looks, each guestdriver.Options.Watch.
//
// # Ownership and concurrency
//
// A [Bus] owns what it opened and mapped until Close, which first ends bus
// mastering. After Close its memory and registers are still there as private
// zero pages, so that a goroutine that was about to touch them does not fault.
// All methods are safe for concurrent use. When the program dies the kernel
// ends bus mastering with the last descriptor of /dev/uioN, which is after the
// program's memory is gone: the adapter may write pages that are somebody
// else's for a moment. Only an IOMMU prevents that.
package uio
