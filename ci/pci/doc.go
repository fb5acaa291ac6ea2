// SPDX-License-Identifier: Apache-2.0

// Package pci has others look at a function that vfio-user/pci makes with every
// capability and every kind of BAR it has: lspci decodes a dump of its
// configuration space, and the real QEMU attaches it under qtest, with no
// guest, and uses it.
//
// Without lspci or QEMU its tests are skipped; CI_REQUIRE=lspci,qemu makes that
// a failure.
package pci
