// SPDX-License-Identifier: Apache-2.0

// Package sysfs finds adapters and binds them to drivers through Linux's sysfs
// (Documentation/ABI/testing/sysfs-bus-pci). It keeps no state.
package sysfs
