// SPDX-License-Identifier: Apache-2.0

// Package chip has the types in which firmware and the PCI function that it runs
// on speak with each other. It stands below both, so that neither is compiled again
// when the other changes: the time from a saved file of firmware to a device that
// runs it is mostly the compiler's and the linker's.
package chip
