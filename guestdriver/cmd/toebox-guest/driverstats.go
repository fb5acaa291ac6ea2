// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"toebox/guestdriver"
)

// driverStats returns the driver's own counters, a line each.
func driverStats(s guestdriver.Stats) []string {
	var lines []string
	for _, c := range []struct {
		name  string
		value uint64
	}{
		{"requests", s.Requests},
		{"responses", s.Responses},
		{"doorbells_in", s.DoorbellsIn},
		{"doorbells_out", s.DoorbellsOut},
		{"interrupts", s.Interrupts},
		{"events", s.Events},
		{"polls", s.Polls},
		{"host_copy_bytes", s.HostCopyBytes},
		{"direct_bytes", s.DirectBytes},
		{"missed_interrupts", s.MissedInterrupts},
		{"resets", s.Resets},
		{"refused", s.Refused},
		{"bad_tags", s.BadTags},
		{"bad_types", s.BadTypes},
		{"bad_finals", s.BadFinals},
		{"bad_conns", s.BadConns},
		{"bad_lengths", s.BadLengths},
		{"lost_buffers", s.LostBuffers},
		{"memory", s.Memory},
		{"outstanding", s.Outstanding},
		{"connections", s.Connections},
	} {
		lines = append(lines, fmt.Sprintf("driver.%-25s %d", c.name, c.value))
	}
	return lines
}
