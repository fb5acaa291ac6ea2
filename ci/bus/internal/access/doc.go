// SPDX-License-Identifier: Apache-2.0

// Package access is what the buses of the ladder have in common above their ways
// to a PCI function: registers by bytes of regions, capabilities, MSI-X (PCI Express
// Base Specification 6.0, section 7.7.2).
//
// It keeps no state of its own. Callers order what must not happen at once.
package access
