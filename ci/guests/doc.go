// SPDX-License-Identifier: Apache-2.0

// Package guests holds tests of whole machines: a guest that drives the adapter, the
// teaching device and their siblings behind each kind of virtual IOMMU, and is reset
// by its own kernel and by QEMU while they work. What is proved is that QEMU has no
// complaint, that the servers refuse it nothing, and that no mapping of a guest that
// is gone is left. The same is proved of QEMU without a guest, where the tables of the
// IOMMU are the test's.
//
// What QEMU writes to its standard error is compared with nothing at all.
package guests
