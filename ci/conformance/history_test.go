// SPDX-License-Identifier: Apache-2.0

package conformance

import (
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
	tests := []struct {
		name  string
		steps []desc // requests have types below 16
		want  string // empty: nothing is wrong
	}{
		{"a send", []desc{send, sent}, ""},
		{"half of a send", []desc{send, with(sent, func(d *desc) { d.Aux, d.Length = 5, 45 })}, ""},
		{"unsolicited", []desc{{Type: 18, Flags: final, Conn: 3}}, ""},
		{"a buffer in parts", []desc{buffer, got(4, 6, 0), got(10, 10, final)}, ""},
		{"a buffer once", []desc{buffer, got(4, 6, final)}, ""},
		{"two targets", []desc{connect, result(1, 0, 0), result(0, 4, final)}, ""},
		{"refused as a whole", []desc{connect, result(0xffffffff, 41, final)}, ""},
		{"a cancellation that won", []desc{buffer, cancel(2), back, gone(0)}, ""},
		{"a cancellation that lost", []desc{send, sent, cancel(1), gone(15)}, ""},
		{"a tag in use", []desc{buffer, with(buffer, func(d *desc) { d.Type = 8 }),
			{Type: 24, Flags: final, Aux: 35, Tag: 2}, back}, ""},
		{"no request of that type", []desc{{Type: 30, Tag: 4}, {Type: 31, Flags: final, Aux: 32, Tag: 4}}, ""},

		{"nobody asked", []desc{sent}, "without a request"},
		{"twice", []desc{send, sent, sent}, "after the terminal one"},
		{"twice, a buffer", []desc{buffer, back, got(4, 6, 0)}, "after the terminal one"},
		{"wrong type", []desc{send, with(sent, func(d *desc) { d.Type = 16 })}, "answers a request of type 1"},
		{"no FINAL", []desc{send, with(sent, func(d *desc) { d.Flags = 0 })}, "more than one response"},
		{"another base", []desc{send, with(sent, func(d *desc) { d.Base++ })}, "another buffer"},
		{"OK but short", []desc{send, with(sent, func(d *desc) { d.Length-- })}, "a send of 90 bytes"},
		{"more than all", []desc{send, with(sent, func(d *desc) { d.Aux, d.Length = 5, 91 })}, "a send of 90 bytes"},
		{"a hole", []desc{buffer, got(5, 6, 0)}, "another place"},
		{"the same bytes again", []desc{buffer, got(4, 6, 0), got(4, 6, 0)}, "another place"},
		{"beyond the end", []desc{buffer, got(4, 17, final)}, "beyond the end"},
		{"full without FINAL", []desc{buffer, got(4, 16, 0)}, "without FINAL"},
		{"empty-handed with bytes", []desc{buffer, with(back, func(d *desc) { d.Length = 3 })}, "ends without bytes"},
		{"one target twice", []desc{connect, result(1, 0, 0), result(1, 4, final)}, "two results"},
		{"refused after a result", []desc{connect, result(1, 0, 0), result(0xffffffff, 4, final)}, "after results"},
		{"cancelled and open", []desc{buffer, cancel(2), gone(0)}, "no terminal response yet"},
		{"cancelled and done", []desc{send, sent, cancel(1), gone(0)}, "ended with status 0"},
		{"cancelled and never there", []desc{cancel(1), gone(0)}, "never was"},
		{"too late and open", []desc{buffer, cancel(2), gone(15)}, "too late"},
	}
	for _, tt := range tests {
		h := newHistory()
		var broken []string
		for _, d := range tt.steps {
			if d.Type < 16 || d.Type == 30 {
				h.post(d)
			} else {
				broken = append(broken, h.response(d)...)
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
