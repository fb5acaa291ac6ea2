// SPDX-License-Identifier: Apache-2.0

package cheader

// field of a struct. Size is in bytes, of one element.
type field struct {
	name    string
	size    int
	count   int // of an array; 0: none
	comment string
}

// layout is a struct of SPEC.md, its fields without holes.
type layout struct {
	name   string
	doc    string
	size   int
	fields []field
}

// layouts are those of SPEC.md, in its order.
func layouts() []layout {
	pad := func(name string, n int) field { return field{name, 1, n, "0"} }
	return []layout{
		{"toebox_event_block", "Event block of a queue (SPEC.md §4.4), a word in each line of a cache.", 256, []field{
			{"in_published", 4, 0, "written by the adapter"}, pad("pad0", 60),
			{"out_published", 4, 0, "written by the host"}, pad("pad1", 60),
			{"in_freed", 4, 0, "written by the host"}, pad("pad2", 60),
			{"out_freed", 4, 0, "written by the adapter"}, pad("pad3", 60),
		}},
		{"toebox_descriptor", "Descriptor (SPEC.md §5), 32-byte aligned. Bytes 0-3 are stored whole, by one 32-bit store, last.", 32, []field{
			{"type", 1, 0, "bit 7 owner, bits 6..2 type, bit 1 ASAP, bit 0 MODIFY"}, {"flags", 1, 0, ""},
			{"aux", 2, 0, "status, number of tuples, or piece"}, {"tag", 4, 0, ""}, {"base", 8, 0, ""},
			{"conn", 8, 0, "connection id"}, {"length", 4, 0, ""}, {"offset", 4, 0, ""},
		}},
		{"toebox_tuple", "Head of a tuple in a control buffer (SPEC.md §6); the value follows, the next tuple at the next multiple of 8.", 8, []field{
			{"attribute", 2, 0, "bit 15: set"}, {"status", 2, 0, "stored by the adapter"}, {"length", 4, 0, "of the value"},
		}},
		{"toebox_address", "ADDRESS (SPEC.md §6.1), and the head of a datagram of an unconnected endpoint (§5.11).", 24, []field{
			{"family", 1, 0, "4 or 6; 0: none"}, {"prefix", 1, 0, ""}, {"port", 2, 0, ""}, pad("zero", 4),
			{"address", 1, 16, "in network order; IPv4: the first 4"},
		}},
		{"toebox_target", "TARGET (SPEC.md §6.2).", 64, []field{
			{"protocol", 1, 0, "6 TCP, 17 UDP"}, {"family", 1, 0, "4 or 6"}, {"count", 2, 0, "consecutive ports"},
			{"local_port", 2, 0, ""}, {"remote_port", 2, 0, ""}, {"local", 1, 16, ""}, {"remote", 1, 16, ""},
			{"time_limit", 8, 0, "ns"}, {"backlog", 4, 0, ""}, pad("zero", 4), {"cookie", 8, 0, ""},
		}},
		{"toebox_terminate", "TERMINATE (SPEC.md §6.3).", 16, []field{{"conn", 8, 0, ""}, {"mode", 4, 0, ""}, pad("zero", 4)}},
		{"toebox_cancel", "CANCEL (SPEC.md §6.3).", 16, []field{{"conn", 8, 0, ""}, {"tag", 4, 0, ""}, pad("zero", 4)}},
		{"toebox_report", "Record of a report buffer (SPEC.md §6.4).", 64, []field{
			{"tag", 4, 0, ""}, {"status", 2, 0, ""}, {"type", 1, 0, ""}, {"flags", 1, 0, ""}, {"conn", 8, 0, ""},
			{"cookie", 8, 0, "or the listener's id"}, {"ordinal", 4, 0, ""}, {"family", 1, 0, ""}, {"protocol", 1, 0, ""},
			{"local_port", 2, 0, ""}, {"remote_port", 2, 0, ""}, pad("zero", 6), {"remote", 1, 16, ""}, {"uptime", 8, 0, "ns"},
		}},
		{"toebox_buffer_table", "BUFFER_TABLE (SPEC.md §7, MM16).", 16, []field{{"base", 8, 0, ""}, {"entries", 8, 0, ""}}},
		{"toebox_buffer_entry", "Entry of the table that BUFFER_TABLE names.", 48, []field{
			{"base", 8, 0, ""}, {"length", 8, 0, ""}, {"speed", 8, 0, ""}, {"node", 8, 0, ""}, {"group", 8, 0, ""}, {"flags", 8, 0, ""},
		}},
		{"toebox_notify_pattern", "NOTIFY_PATTERN (SPEC.md §7, CE08); only `length` bytes of the pattern are there.", 80, []field{
			{"mode", 1, 0, "0 off, 1 at the start, 2 end marker"}, {"scope", 1, 0, "0 own, 1 all"}, {"length", 2, 0, ""},
			{"bytes", 4, 0, "ceiling"}, {"time", 8, 0, "ceiling, ns"}, {"pattern", 1, 64, ""},
		}},
		{"toebox_held_buffer", "Entry of HELD_BUFFERS (SPEC.md §7).", 16, []field{{"tag", 4, 0, ""}, {"length", 4, 0, ""}, {"base", 8, 0, ""}}},
		{"toebox_state_record", "State record (SPEC.md §7.1, CE09).", 192, []field{
			{"conn", 8, 0, ""}, {"local", 24, 0, "an ADDRESS"}, {"remote", 24, 0, "an ADDRESS"},
			{"state", 4, 0, ""}, {"protocol", 4, 0, ""},
			{"accepted", 8, 0, "bytes"}, {"sent", 8, 0, ""}, {"acknowledged", 8, 0, ""}, {"received", 8, 0, ""}, {"delivered", 8, 0, ""},
			{"mss", 4, 0, ""}, {"options", 4, 0, ""}, {"send_window", 4, 0, ""}, {"receive_window", 4, 0, ""},
			{"rtt", 8, 0, "ns"}, {"rto", 8, 0, "ns"}, {"timers", 8, 0, ""},
			{"send_sequence", 4, 0, ""}, {"receive_sequence", 4, 0, ""}, {"send_scale", 1, 0, ""}, {"receive_scale", 1, 0, ""}, pad("zero", 6),
			{"uptime", 8, 0, "ns"}, {"time", 4, 0, "our time stamp, RFC 7323"}, {"recent_time", 4, 0, "the peer's last"},
			{"flags", 4, 0, "1 EXACT"}, {"unread", 4, 0, "bytes that follow"}, pad("rest", 8),
		}},
		{"toebox_nvm_default", "Default attribute in the non-volatile image.", 16, []field{
			{"attribute", 2, 0, ""}, pad("zero", 6), {"value", 8, 0, ""},
		}},
		{"toebox_nvm", "Non-volatile image (SPEC.md §10).", 512, []field{
			{"magic", 1, 8, "\"TOENVM01\""}, {"crc", 4, 0, "CRC-32 (IEEE) of bytes 12..511"}, {"flags", 4, 0, ""},
			{"mac", 1, 6, ""}, {"zero", 2, 0, "0"}, {"serial", 1, 32, "NUL padded"}, {"firmware", 1, 64, "NUL padded"},
			{"ndefaults", 4, 0, "at most 24"}, {"zero1", 4, 0, "0"}, {"defaults", 16, 24, ""},
		}},
	}
}

// ctype is the type of a field.
func (f field) ctype() string {
	switch f.size {
	case 1:
		return "uint8_t"
	case 2:
		return "uint16_t"
	case 4:
		return "uint32_t"
	case 8:
		return "uint64_t"
	case 16:
		return "struct toebox_nvm_default"
	}
	return "struct toebox_address"
}
