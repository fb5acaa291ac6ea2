// SPDX-License-Identifier: Apache-2.0

// Package agent is the guest's half of the benchmark: it takes one task after
// another (package task) and does it over the adapter or over the kernel's TCP.
//
// What a guest pays is counted from here: processors that were not idle (/proc/stat,
// whose idle time is exact where its other columns are sampled), the interrupts of
// one PCI function (/proc/interrupts), doorbells (the driver's counters). Connections
// are made before the measurement and ended after it.
//
// An [Agent] does one task at a time and is not safe for concurrent use.
package agent
