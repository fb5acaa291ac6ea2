// SPDX-License-Identifier: Apache-2.0

package abi_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"toebox/vdev/abi"
	"toebox/vdev/abi/internal/cheader"
)

// compileLimit bounds one run of a compiler or of what it made.
const compileLimit = 2 * time.Minute

// TestHeader compares toebox.h with what is made of the package now.
func TestHeader(t *testing.T) {
	want, err := cheader.Generate(".")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(cheader.Name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("toebox.h is older than package abi: run\n\tgo generate ./vdev/abi")
	}
}

// specRows returns, for each row of the tables of SPEC.md that give a number to
// a name, the macro and the number.
func specRows(t *testing.T) (macros, numbers []string) {
	t.Helper()
	spec, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		heading, prefix string
		rows            int // at least
	}{
		{"## 3. ", "TOEBOX_REG_", 35}, {"### 3.2 ", "TOEBOX_REG_", 14}, {"## 7. ", "TOEBOX_ATTR_", 100},
		{"## 8. ", "TOEBOX_STATUS_", 40}, {"## 13. ", "TOEBOX_COUNTER_", 60},
	} {
		_, text, ok := strings.Cut(string(spec), "\n"+s.heading)
		if !ok {
			t.Fatalf("SPEC.md has no %q", s.heading)
		}
		text, _, _ = strings.Cut(text, "\n#")
		n := 0
		for _, row := range regexp.MustCompile(`(?m)^\| ((?:0x)?[0-9a-f]+) \| (\w+) \|`).FindAllStringSubmatch(text, -1) {
			macros, numbers = append(macros, s.prefix+strings.ToUpper(row[2])), append(numbers, row[1])
			n++
		}
		if n < s.rows {
			t.Fatalf("SPEC.md: only %d rows under %q", n, s.heading)
		}
	}
	return macros, numbers
}

// array is bytes as C wants them.
func array(name string, b []byte) string {
	var s strings.Builder
	fmt.Fprintf(&s, "static const unsigned char %s[] = {", name)
	for _, v := range b {
		fmt.Fprintf(&s, "%d,", v)
	}
	s.WriteString("};\n")
	return s.String()
}

// TestHeaderInC compiles a program of the header, as C and as C++, which prints
// numbers, offsets, and fields of what package abi encodes. What they should be
// is in SPEC.md.
func TestHeaderInC(t *testing.T) {
	address := func(s string, port uint16) abi.Address { return abi.Address{Addr: netip.MustParseAddr(s), Port: port} }
	state := abi.StateRecord{
		Conn: 0x1122334455667788, Local: address("10.0.2.15", 80), Remote: address("2001:db8::7", 4321), State: 4, Protocol: 6,
		Accepted: 1 << 40, Sent: 2, Acked: 3, Received: 4, Delivered: 5, MSS: 1460, Options: 7, SendWindow: 8, ReceiveWindow: 9,
		RTT: 10, RTO: 11, Timers: 12, SendSequence: 13, ReceiveSequence: 14, SendScale: 15, ReceiveScale: 16,
		Uptime: 17, Time: 18, RecentTime: 19,
	}
	d := make(abi.Descriptor, 32)
	d.Encode(&abi.Fields{Type: 3, Flags: 0x80, Aux: 0x0102, Tag: 5, Base: 1 << 33, Conn: 6, Length: 7, Offset: 8}, true)
	data := map[string][]byte{
		"descriptor": d,
		"report": abi.AppendReport(nil, abi.Report{
			Tag: 1, Status: 4, Type: 19, Flags: 1, Conn: 2, Cookie: 3, Ordinal: 4, Protocol: 6, LocalPort: 5,
			Remote: netip.MustParseAddrPort("192.0.2.1:6"), Uptime: 7,
		}),
		"target": abi.AppendTarget(nil, abi.Target{
			Protocol: 17, Count: 2, Local: netip.MustParseAddrPort("0.0.0.0:3"), Remote: netip.MustParseAddrPort("192.0.2.9:4"),
			Limit: 5, Backlog: 6, Cookie: 7,
		}),
		"state_record":   abi.AppendStateRecord(nil, &state),
		"terminate":      abi.AppendTerminate(nil, 1, 2),
		"cancel":         abi.AppendCancel(nil, 3, 4),
		"held_buffer":    abi.AppendHeldBuffer(nil, abi.HeldBuffer{Tag: 1, Length: 2, Base: 3}),
		"buffer_entry":   abi.AppendBufferEntry(nil, abi.BufferEntry{Base: 1, Length: 2, Speed: 3, Node: 4, Group: 5, Flags: 6}),
		"tuple":          abi.AppendSetScalar(nil, 0x0106, 1500),
		"notify_pattern": append(abi.AppendNotifyPattern(nil, abi.NotifyPattern{Mode: 2, Scope: 1, Bytes: 3, Time: 4, Pattern: []byte("\r\n")}), make([]byte, 62)...),
	}
	var decls, body strings.Builder
	var exprs, want []string
	print := func(value, expr string) {
		fmt.Fprintf(&body, "\tshow((uint64_t)(%s));\n", expr)
		exprs, want = append(exprs, expr), append(want, value)
	}
	macros, numbers := specRows(t)
	for i, m := range macros {
		print(numbers[i], m)
	}
	for _, c := range []struct{ value, expr string }{
		{"0x1234", "TOEBOX_VENDOR_ID"}, {"0x7422", "TOEBOX_DEVICE_ID"}, {"0xff0000", "TOEBOX_CLASS_CODE"},
		{"0x424f4554", "TOEBOX_ID_VALUE"}, {"0x80000000", "TOEBOX_CONTROL_RESET"}, {"0x40", "TOEBOX_STATUS_BIT_DMA"},
		{"32", "TOEBOX_MAX_QUEUES"}, {"33", "TOEBOX_NUM_VECTORS"}, {"0x3fffffff", "TOEBOX_INDEX_MASK"},
		{"0x17c0", "TOEBOX_REG_OF_QUEUE(31, TOEBOX_REG_Q_COMMAND)"}, {"0x1064", "TOEBOX_REG_OF_QUEUE(1, TOEBOX_REG_Q_VECTOR)"},
		{"0x40f8", "TOEBOX_REG_IN_DOORBELL(31)"}, {"0x4004", "TOEBOX_REG_OUT_DOORBELL(0)"},
		{"31", "TOEBOX_TYPE_REJECTED"}, {"17", "TOEBOX_TYPE_BUFFER_DONE"}, {"0x80", "TOEBOX_FLAG_REPORT"}, {"0x80", "TOEBOX_WORD_OWNER"},
		// §4.4: the host asks at 0x40, the adapter at 0xc0.
		{"0x40", "offsetof(struct toebox_event_block, out_published)"}, {"0xc0", "offsetof(struct toebox_event_block, out_freed)"},
		{"256", "sizeof(struct toebox_event_block)"}, {"24", "sizeof(struct toebox_address)"}, {"80", "sizeof(struct toebox_notify_pattern)"},
		// §10.
		{"16", "offsetof(struct toebox_nvm, mac)"}, {"56", "offsetof(struct toebox_nvm, firmware)"},
		{"120", "offsetof(struct toebox_nvm, ndefaults)"}, {"128", "offsetof(struct toebox_nvm, defaults)"}, {"512", "sizeof(struct toebox_nvm)"},
		// §5, §4.2: word 0 of the descriptor below.
		{"0x0102808c", "toebox_word(TOEBOX_TYPE_CONNECT, TOEBOX_FLAG_REPORT, 0x102, TOEBOX_WORD_OWNER)"}, {"3", "toebox_word_type(0x0102808c)"},
		{"0x8c", "descriptor.type"}, {"0x80", "descriptor.flags"}, {"0x102", "descriptor.aux"}, {"5", "descriptor.tag"},
		{"0x200000000", "descriptor.base"}, {"6", "descriptor.conn"}, {"7", "descriptor.length"}, {"8", "descriptor.offset"},
		{"1", "report.tag"}, {"4", "report.status"}, {"19", "report.type"}, {"1", "report.flags"}, {"2", "report.conn"}, {"3", "report.cookie"},
		{"4", "report.ordinal"}, {"4", "report.family"}, {"6", "report.protocol"}, {"5", "report.local_port"}, {"6", "report.remote_port"},
		{"192", "report.remote[0]"}, {"7", "report.uptime"},
		{"17", "target.protocol"}, {"4", "target.family"}, {"2", "target.count"}, {"3", "target.local_port"}, {"4", "target.remote_port"},
		{"9", "target.remote[3]"}, {"5", "target.time_limit"}, {"6", "target.backlog"}, {"7", "target.cookie"},
		{"0x1122334455667788", "state_record.conn"}, {"80", "state_record.local.port"}, {"6", "state_record.remote.family"}, {"7", "state_record.remote.address[15]"},
		{"0x10000000000", "state_record.accepted"}, {"2", "state_record.sent"}, {"3", "state_record.acknowledged"}, {"4", "state_record.received"},
		{"5", "state_record.delivered"}, {"1460", "state_record.mss"}, {"7", "state_record.options"}, {"8", "state_record.send_window"},
		{"9", "state_record.receive_window"}, {"10", "state_record.rtt"}, {"11", "state_record.rto"}, {"12", "state_record.timers"},
		{"13", "state_record.send_sequence"}, {"14", "state_record.receive_sequence"}, {"15", "state_record.send_scale"},
		{"16", "state_record.receive_scale"}, {"17", "state_record.uptime"}, {"18", "state_record.time"}, {"19", "state_record.recent_time"},
		{"1", "terminate.conn"}, {"2", "terminate.mode"}, {"3", "cancel.conn"}, {"4", "cancel.tag"},
		{"1", "held_buffer.tag"}, {"2", "held_buffer.length"}, {"3", "held_buffer.base"}, {"4", "buffer_entry.node"}, {"6", "buffer_entry.flags"},
		{"0x8106", "tuple.attribute"}, {"8", "tuple.length"},
		{"2", "notify_pattern.mode"}, {"2", "notify_pattern.length"}, {"3", "notify_pattern.bytes"}, {"4", "notify_pattern.time"}, {"10", "notify_pattern.pattern[1]"},
		// §4.4: (new - N - 1) mod 2^30 < (new - old) mod 2^30.
		{"1", "toebox_event_wants(toebox_event_at(4), 4, 5)"}, {"0", "toebox_event_wants(toebox_event_at(5), 4, 5)"},
		{"0", "toebox_event_wants(toebox_event_at(3), 4, 5)"}, {"1", "toebox_event_wants(toebox_event_at(0), 0x3fffffff, 1)"},
		{"0", "toebox_event_wants(toebox_event_at(1), 0x3fffffff, 1)"}, {"1", "toebox_event_wants(TOEBOX_EVENT_ALWAYS, 0, 1)"},
		{"0", "toebox_event_wants(TOEBOX_EVENT_ALWAYS, 1, 1)"}, {"0", "toebox_event_wants(TOEBOX_EVENT_NEVER, 0, 1)"},
		{"1", "toebox_event_wants(0xc0000000u, 0, 1)"},
	} {
		print(c.value, c.expr)
	}
	var views strings.Builder
	for name, b := range data {
		if name == "tuple" {
			b = b[:8]
		}
		decls.WriteString(array(name+"_bytes", b))
		fmt.Fprintf(&views, "\tstruct toebox_%s %s;\n\tTOEBOX_ASSERT(sizeof %s == sizeof %s_bytes, \"%s\");\n\tmemcpy(&%s, %s_bytes, sizeof %s);\n",
			name, name, name, name, name, name, name, name)
	}
	program := "#include \"toebox.h\"\n#include <inttypes.h>\n#include <stdio.h>\n#include <string.h>\n" + decls.String() +
		"static void show(uint64_t v) { printf(\"%\" PRIu64 \"\\n\", v); }\nint main(void)\n{\n" + views.String() + body.String() + "\treturn 0;\n}\n"
	for _, l := range []struct {
		name, env, compiler, file string
		flags                     []string
	}{
		{"C", "CC", "cc", "header.c", []string{"-std=c11", "-pedantic"}},
		{"C++", "CXX", "c++", "header.cc", []string{"-std=c++11"}},
	} {
		t.Run(l.name, func(t *testing.T) {
			compiler := l.compiler
			if v := os.Getenv(l.env); v != "" {
				compiler = v
			}
			path, err := exec.LookPath(compiler)
			if err != nil {
				t.Skipf("no %s compiler: install gcc and g++, or name one in %s: %v", l.name, l.env, err)
			}
			dir := t.TempDir()
			file := filepath.Join(dir, l.file)
			if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), compileLimit)
			defer cancel()
			args := append(l.flags, "-Wall", "-Wextra", "-Werror", "-I.", "-o", filepath.Join(dir, "header"), file)
			if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil {
				t.Fatalf("%s %s: %v\n%s", compiler, strings.Join(args, " "), err, out)
			}
			out, err := exec.CommandContext(ctx, filepath.Join(dir, "header")).Output()
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Fields(string(out))
			if len(got) != len(want) {
				t.Fatalf("the program printed %d numbers, want %d", len(got), len(want))
			}
			for i, w := range want {
				n, err := strconv.ParseUint(w, 0, 64)
				if err != nil {
					t.Fatal(err)
				}
				if got[i] != strconv.FormatUint(n, 10) {
					t.Errorf("%s is %s, want %s", exprs[i], got[i], w)
				}
			}
		})
	}
}
