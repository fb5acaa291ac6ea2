// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// TestHistory tells the model of histories, good and bad, and says which rule
// it must find broken.
func TestHistory(t *testing.T) {
	const final = flagFinal
	send := desc{Type: 1, Tag: 1, Base: 0x1000, Conn: 7, Length: 100, Offset: 10}
	sent := desc{Type: 17, Flags: final, Tag: 1, Base: 0x1000, Conn: 7, Length: 90, Offset: 10}
	buffer := desc{Type: 2, Tag: 2, Base: 0x2000, Conn: 7, Length: 20, Offset: 4}
	got := func(off, n uint32, flags uint8) desc {
		return desc{Type: 16, Flags: flags, Tag: 2, Base: 0x2000, Conn: 7, Length: n, Offset: off}
	}
	back := desc{Type: 17, Flags: final, Aux: 2, Tag: 2, Base: 0x2000, Conn: 7, Offset: 4}
	connect := desc{Type: 3, Tag: 3, Aux: 2}
	result := func(i uint32, status uint16, flags uint8) desc {
		return desc{Type: 19, Flags: flags, Aux: status, Tag: 3, Offset: i}
	}
	cancel := func(tag uint32) desc { return desc{Type: 6, Tag: 9, Offset: tag} }
	gone := func(status uint16) desc { return desc{Type: 22, Flags: final, Aux: status, Tag: 9} }
	with := func(d desc, f func(*desc)) desc { f(&d); return d }
	post := desc{Type: 2, Flags: flagReport, Tag: 5, Base: 0x3000, Length: 512, Offset: 8}
	report := func(typ uint8, records int) desc {
		return desc{Type: typ, Flags: flagReport | final, Tag: 5, Base: 0x3000, Length: uint32(64 * records), Offset: 8}
	}
	unused := desc{Type: 17, Flags: final, Aux: 2, Tag: 5, Base: 0x3000, Offset: 8}
	arrival := func(conn uint64) desc { return desc{Type: 18, Flags: final, Conn: conn} }
	record := func(d desc) []byte {
		b := make([]byte, 64)
		binary.LittleEndian.PutUint32(b, d.Tag)
		binary.LittleEndian.PutUint16(b[4:], d.Aux)
		b[6], b[7] = d.Type, d.Flags
		binary.LittleEndian.PutUint64(b[8:], d.Conn)
		binary.LittleEndian.PutUint32(b[24:], d.Offset)
		return b
	}
	told := arrival(7)
	next := desc{Type: 2, Tag: 3, Base: 0x2014, Conn: 7, Length: 20} // behind buffer
	both := func(n uint32) desc {
		return desc{Type: 16, Flags: flagCombined | final, Tag: 3, Base: 0x2000, Conn: 7, Length: n, Offset: 4}
	}
	tests := []struct {
		name    string
		steps   []desc // requests have types below 16
		want    string // empty: nothing is wrong
		records []byte // of responses with REPORT
	}{
		{"a send", []desc{send, sent}, "", nil},
		{"half of a send", []desc{send, with(sent, func(d *desc) { d.Aux, d.Length = 5, 45 })}, "", nil},
		{"unsolicited", []desc{{Type: 18, Flags: final, Conn: 3}}, "", nil},
		{"a buffer in parts", []desc{told, buffer, got(4, 6, 0), got(10, 10, final)}, "", nil},
		{"a combined result", []desc{told, buffer, next, both(36)}, "", nil},
		{"one whose last buffer is not full", []desc{told, buffer, next, both(17)}, "", nil},
		{"one behind a part", []desc{told, buffer, next, got(4, 6, 0), with(both(20), func(d *desc) { d.Offset = 10 })}, "", nil},
		{"one that leaves out a part", []desc{told, buffer, next, got(4, 6, 0), both(20)}, "at another place", nil},
		{"one without bytes for the last buffer", []desc{told, buffer, next, both(16)}, "nothing for the last", nil},
		{"one of too many bytes", []desc{told, buffer, next, both(37)}, "beyond the end", nil},
		{"one that is not final", []desc{told, buffer, next, with(both(36), func(d *desc) { d.Flags = flagCombined })}, "a combined result of 2", nil},
		{"one of a single buffer", []desc{told, buffer, with(got(4, 16, final|flagCombined), func(d *desc) {})}, "a combined result of 1", nil},
		{"one over a gap", []desc{told, buffer, with(next, func(d *desc) { d.Base++ }), both(36)}, "a combined result over", nil},
		{"one whose last buffer was answered", []desc{told, buffer, next, both(36), with(got(0, 20, final), func(d *desc) { d.Tag, d.Base = 3, 0x2014 })}, "after the terminal one", nil},
		{"a buffer once", []desc{told, buffer, got(4, 6, final)}, "", nil},
		{"two targets", []desc{connect, result(1, 4, 0), with(result(0, 0, final), func(d *desc) { d.Conn = 8 })}, "", nil},
		{"refused as a whole", []desc{connect, result(0xffffffff, 41, final)}, "", nil},
		{"a cancellation that won", []desc{buffer, cancel(2), back, gone(0)}, "", nil},
		{"a cancellation that lost", []desc{send, sent, cancel(1), gone(15)}, "", nil},
		{"a tag in use", []desc{buffer, with(buffer, func(d *desc) { d.Type = 8 }),
			{Type: 24, Flags: final, Aux: 35, Tag: 2}, back}, "", nil},
		{"no request of that type", []desc{{Type: 30, Tag: 4}, {Type: 31, Flags: final, Aux: 32, Tag: 4}}, "", nil},

		{"nobody asked", []desc{sent}, "without a request", nil},
		{"twice", []desc{send, sent, sent}, "after the terminal one", nil},
		{"twice, a buffer", []desc{told, buffer, back, got(4, 6, 0)}, "after the terminal one", nil},
		{"wrong type", []desc{told, send, with(sent, func(d *desc) { d.Type = 16 })}, "answers a request of type 1", nil},
		{"no FINAL", []desc{send, with(sent, func(d *desc) { d.Flags = 0 })}, "more than one response", nil},
		{"another base", []desc{send, with(sent, func(d *desc) { d.Base++ })}, "another buffer", nil},
		{"OK but short", []desc{send, with(sent, func(d *desc) { d.Length-- })}, "a send of 90 bytes", nil},
		{"more than all", []desc{send, with(sent, func(d *desc) { d.Aux, d.Length = 5, 91 })}, "a send of 90 bytes", nil},
		{"a hole", []desc{told, buffer, got(5, 6, 0)}, "another place", nil},
		{"the same bytes again", []desc{told, buffer, got(4, 6, 0), got(4, 6, 0)}, "another place", nil},
		{"beyond the end", []desc{told, buffer, got(4, 17, final)}, "beyond the end", nil},
		{"full without FINAL", []desc{told, buffer, got(4, 16, 0)}, "without FINAL", nil},
		{"empty-handed with bytes", []desc{buffer, with(back, func(d *desc) { d.Length = 3 })}, "ends without bytes", nil},
		{"one target twice", []desc{connect, result(0, 4, 0), result(0, 4, 0), result(1, 4, final)}, "two results", nil},
		{"refused after a result", []desc{connect, result(1, 0, 0), result(0xffffffff, 4, final)}, "after results", nil},
		{"cancelled and open", []desc{buffer, cancel(2), gone(0)}, "no terminal response yet", nil},
		{"cancelled and done", []desc{send, sent, cancel(1), gone(0)}, "ended with status 0", nil},
		{"cancelled and never there", []desc{cancel(1), gone(0)}, "never was", nil},
		{"too late and open", []desc{buffer, cancel(2), gone(15)}, "too late", nil},

		{"a report", []desc{post, connect, report(19, 2)}, "", slices.Concat(record(with(result(1, 0, 0), func(d *desc) { d.Conn = 8 })), record(result(0, 4, final)))},
		{"one result alone, one reported", []desc{connect, post, result(1, 4, 0), report(19, 1)}, "", record(result(0, 4, final))},
		{"an arrival and what follows", []desc{post, report(18, 1), {Type: 21, Flags: final, Conn: 7}}, "", record(told)},
		{"a report buffer not used", []desc{post, unused}, "", nil},
		{"a report that wrote before its memory went", []desc{post, with(report(18, 1), func(d *desc) { d.Aux = 39 })}, "", record(told)},

		{"a target without a result", []desc{connect, result(1, 4, final)}, "target 0 has no result", nil},
		{"told twice", []desc{told, told}, "told before", nil},
		{"told twice, by report", []desc{told, post, report(18, 1)}, "told before", record(told)},
		{"bytes before the notice", []desc{buffer, got(4, 6, 0)}, "not told", nil},
		{"an end before the notice", []desc{{Type: 21, Flags: final, Conn: 7}}, "not told", nil},
		{"a result twice, by report", []desc{connect, post, result(0, 4, 0), report(19, 1)}, "two results", record(result(0, 4, 0))},
		{"reported after FINAL", []desc{with(connect, func(d *desc) { d.Aux = 1 }), post, result(0, 4, final), report(19, 1)}, "after the terminal one", record(result(0, 4, final))},
		{"a report twice", []desc{post, unused, report(18, 1)}, "no buffer was posted", record(told)},
		{"a report in a receive buffer", []desc{buffer, with(report(18, 1), func(d *desc) { d.Tag = 2 })}, "no buffer was posted", record(told)},
		{"bytes in a report buffer", []desc{told, post, with(got(8, 6, final), func(d *desc) { d.Tag, d.Base = 5, 0x3000 })}, "in a report buffer", nil},
		{"a report elsewhere", []desc{post, with(report(18, 1), func(d *desc) { d.Offset = 0 })}, "in another buffer", record(told)},
		{"a report that is too long", []desc{post, with(report(18, 1), func(d *desc) { d.Length = 512 })}, "does not take", record(told)},
		{"a report that is not FINAL", []desc{post, with(report(18, 1), func(d *desc) { d.Flags = flagReport })}, "other flags", record(told)},
		{"half a record", []desc{post, report(18, 1)}, "8 bytes left", append(record(told), make([]byte, 8)...)},
		{"no memory", []desc{post, report(18, 1)}, "0 records", nil},
		{"another type first", []desc{connect, post, report(18, 2)}, "2 records", slices.Concat(record(result(0, 4, 0)), record(told))},
		{"a record of nothing", []desc{post, report(17, 1)}, "no record of a report", record(unused)},
		{"a result without a request, by report", []desc{post, report(19, 1)}, "without a request", record(result(0, 4, final))},
	}
	for _, tt := range tests {
		h := newHistory()
		var broken []string
		for _, d := range tt.steps {
			if d.Type < 16 || d.Type == 30 {
				h.post(d)
			} else {
				broken = append(broken, h.response(d, tt.records)...)
			}
		}
		switch all := strings.Join(broken, "; "); {
		case tt.want == "" && all != "":
			t.Errorf("%s: %s", tt.name, all)
		case tt.want != "" && (len(broken) != 1 || !strings.Contains(all, tt.want)):
			t.Errorf("%s: found %q, want %q", tt.name, all, tt.want)
		}
	}
}
