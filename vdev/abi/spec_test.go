// SPDX-License-Identifier: Apache-2.0

package abi

import (
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// section returns the text of SPEC.md from a heading to the next.
func section(t *testing.T, heading string) string {
	t.Helper()
	text, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	_, s, ok := strings.Cut(string(text), "\n"+heading)
	if !ok {
		t.Fatalf("SPEC.md has no %q", heading)
	}
	s, _, _ = strings.Cut(s, "\n#")
	return s
}

// table returns the rows of a section whose first cell is a number, with that
// number first and the other cells as they stand.
func table(t *testing.T, heading string) (numbers []uint64, cells [][]string) {
	t.Helper()
	for line := range strings.Lines(section(t, heading)) {
		row := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range row {
			row[i] = strings.TrimSpace(row[i])
		}
		n, err := strconv.ParseUint(row[0], 0, 64)
		if err != nil || len(row) < 2 {
			continue
		}
		numbers, cells = append(numbers, n), append(cells, row[1:])
	}
	if len(numbers) < 5 {
		t.Fatalf("%s: %d rows found", heading, len(numbers))
	}
	return numbers, cells
}

// constants returns the package's exported constants. Imports are not
// resolved: constants need none.
func constants(t *testing.T) map[string]uint64 {
	t.Helper()
	fset := token.NewFileSet()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".go") && !strings.HasSuffix(e.Name(), "_test.go") {
			f, err := parser.ParseFile(fset, e.Name(), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
	}
	cfg := types.Config{Error: func(error) {}, Importer: noImports{}}
	pkg, _ := cfg.Check("abi", fset, files, nil)
	m := map[string]uint64{}
	for _, name := range pkg.Scope().Names() {
		if c, ok := pkg.Scope().Lookup(name).(*types.Const); ok && c.Exported() && c.Val().Kind() == constant.Int {
			v, exact := constant.Uint64Val(constant.ToInt(c.Val()))
			if !exact {
				t.Fatalf("%s is no uint64", name)
			}
			m[name] = v
		}
	}
	return m
}

type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not needed") }

// flat makes SPEC.md's TEST_ADDR_LO and Go's TestAddrLo the same word.
func flat(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }

// compare holds the constants with a prefix against rows of SPEC.md, both ways.
// renamed are the names in which SPEC.md and the code differ on purpose, except
// the constants with the prefix that are something else.
func compare(t *testing.T, prefix string, numbers []uint64, names []string, renamed map[string]string, except ...string) {
	t.Helper()
	all := constants(t)
	got := map[string]string{} // flat name to constant
	for name := range all {
		if rest, ok := strings.CutPrefix(name, prefix); ok && rest != "" {
			got[flat(rest)] = name
		}
	}
	for _, name := range except {
		if _, ok := all[prefix+name]; !ok {
			t.Errorf("%s%s is not there to be excepted", prefix, name)
		}
		delete(got, flat(name))
	}
	for i, name := range names {
		key := flat(name)
		if other, ok := renamed[name]; ok {
			key = flat(other)
		}
		c, ok := got[key]
		delete(got, key)
		if !ok {
			t.Errorf("SPEC.md has %s, there is no constant %s%s", name, prefix, key)
		} else if all[c] != numbers[i] {
			t.Errorf("%s is %#x, SPEC.md says %#x", c, all[c], numbers[i])
		}
	}
	for _, c := range got {
		t.Errorf("SPEC.md has nothing for %s", c)
	}
}

// column returns the i-th cell of each row.
func column(cells [][]string, i int) (c []string) {
	for _, row := range cells {
		c = append(c, row[i])
	}
	return c
}

func TestRegistersAreSPEC(t *testing.T) {
	numbers, cells := table(t, "## 3. Register map")
	compare(t, "Reg", numbers, column(cells, 0), map[string]string{"FW_ID": "FirmwareID"}, "QueueBase", "QueueStride", "Doorbells")
	numbers, cells = table(t, "### 3.2 Queue registers")
	names := column(cells, 0)
	for i := range names {
		names[i] = strings.TrimPrefix(names[i], "Q_")
	}
	compare(t, "QReg", numbers, names, nil)
}

func TestStatusCodesAreSPEC(t *testing.T) {
	numbers, cells := table(t, "## 8. Status codes")
	compare(t, "Status", numbers, column(cells, 0), nil, "Ready", "Running", "Stopped", "Failed", "Link", "MSIX", "DMA")
	known := map[uint64]bool{}
	for i, n := range numbers {
		known[n] = true
		if got := Status(n).String(); got != cells[i][0] {
			t.Errorf("status %d is called %s, SPEC.md says %s", n, got, cells[i][0])
		}
	}
	for n := range uint64(1 << 16) {
		if got := Status(n).String(); !known[n] && got != fmt.Sprint("status ", n) {
			t.Errorf("status %d is called %s, SPEC.md does not know it", n, got)
		}
	}
	if Status(0).Err() != nil || !errors.Is(Status(3).Err(), Status(3)) || Status(3).Error() != "adapter: TIMED_OUT" {
		t.Error("statuses as errors")
	}
}

func TestCountersAreSPEC(t *testing.T) {
	numbers, cells := table(t, "## 13. Counters")
	compare(t, "Counter", numbers, column(cells, 0), nil)
	if len(numbers) != 144 || NumCounters != 144 {
		t.Errorf("%d rows, NumCounters %d", len(numbers), NumCounters)
	}
	for i, n := range numbers {
		if n != uint64(i) || Counter(n).String() != cells[i][0] {
			t.Errorf("counter %d is called %s, SPEC.md says %d is %s", i, Counter(i), n, cells[i][0])
		}
	}
	for _, c := range []Counter{-1, 144, 1 << 40} {
		if got := c.String(); got != fmt.Sprintf("counter_%d", int(c)) {
			t.Errorf("counter %d is called %s", int(c), got)
		}
	}
}

func TestAttributesAreSPEC(t *testing.T) {
	numbers, cells := table(t, "## 7. Attributes")
	compare(t, "Attr", append(numbers, 1, 2, 3, 4), append(column(cells, 0), "TARGET", "TERMINATE", "CANCEL", "RESTORE"),
		map[string]string{"CWND": "CongestionWindow"})
	attributes := Attributes()
	if len(attributes) != len(numbers) {
		t.Errorf("%d attributes, SPEC.md has %d", len(attributes), len(numbers))
	}
	for i, a := range attributes[:min(len(attributes), len(numbers))] {
		name, of, access, value := cells[i][0], cells[i][1], cells[i][2], cells[i][3]
		if uint64(a.ID) != numbers[i] || a.Name != name || a.Connection != (of == "C") || a.Settable != (access == "GS") {
			t.Errorf("row %d: %+v, SPEC.md has %#x %s %s %s", i, a, numbers[i], name, of, access)
		}
		kind := KindBytes
		switch {
		case strings.HasPrefix(value, "scalar"):
			kind = KindScalar
		case value == "string":
			kind = KindString
		case strings.HasPrefix(value, "ADDRESS"):
			kind = KindAddress
		}
		if a.Kind != kind {
			t.Errorf("%s: kind %d, SPEC.md says %q", name, a.Kind, value)
		}
		if want := specDefault(t, name, value); kind == KindScalar && a.Default != want {
			t.Errorf("%s: default %d, SPEC.md says %d (%q)", name, a.Default, want, value)
		}
	}
}

// specDefault reads the default that stands in parentheses, 0 without one.
func specDefault(t *testing.T, name, value string) uint64 {
	t.Helper()
	if name == "OUT_THRESHOLD" {
		return 0 // 1/8 of the table, whose size is known at create
	}
	if value == "scalar (3/4 of MEMORY_SIZE) (MM13)" {
		return 192 << 20
	}
	m := regexp.MustCompile(`\((\d[\d,^-]*)(?:\s*(ns|us|ms|s|KiB|MiB|GiB))?(?::[^)]*)?\)`).FindStringSubmatch(value)
	if m == nil {
		return 0
	}
	if m[1] == "2^64-1" {
		return 1<<64 - 1
	}
	n, err := strconv.ParseUint(strings.ReplaceAll(m[1], ",", ""), 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n * map[string]uint64{"": 1, "ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[m[2]]
}

func TestTypesAreSPEC(t *testing.T) {
	want := map[string]uint64{}
	_, text, _ := strings.Cut(section(t, "## 5. Descriptors"), "| type |")
	for line := range strings.Lines(text) {
		cell := strings.Split(line, "|")
		for i := 1; i+1 < len(cell); i += 2 {
			n, err := strconv.ParseUint(strings.TrimSpace(cell[i]), 10, 8)
			if err != nil {
				continue
			}
			side := "request "
			if n >= 16 {
				side = "response "
			}
			name, _, _ := strings.Cut(strings.TrimSpace(cell[i+1]), ":")
			want[side+name] = n
		}
	}
	got := map[string]uint64{
		"request buffer send": uint64(TypeBufferSend), "request buffer available": uint64(TypeBufferAvailable),
		"request connect": uint64(TypeConnect), "request termination": uint64(TypeTermination),
		"request listen": uint64(TypeListen), "request cancellation": uint64(TypeCancellation),
		"request connection attribute control": uint64(TypeConnectionAttr),
		"request adapter attribute control":    uint64(TypeAdapterAttr),
		"response buffer receive":              uint64(TypeBufferReceive),
		"response buffer available":            uint64(TypeBufferDone), "response connection arrival": uint64(TypeArrival),
		"response connection completion": uint64(TypeCompletion), "response listen response": uint64(TypeListenResponse),
		"response termination response": uint64(TypeTerminated), "response cancellation response": uint64(TypeCancelled),
		"response connection attribute": uint64(TypeConnectionAttrs), "response adapter attribute": uint64(TypeAdapterAttrs),
		"response rejected": uint64(TypeRejected),
	}
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%s is %d, SPEC.md says %d", name, got[name], n)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("SPEC.md has no %s", name)
	}
}

// TestNumbers compares constants that SPEC.md gives in text with literals
// copied from there.
func TestNumbers(t *testing.T) {
	all := constants(t)
	for _, c := range []struct {
		spec string // section
		want map[string]uint64
	}{
		{"2", map[string]uint64{
			"VendorID": 0x1234, "DeviceID": 0x7422, "SubsystemVendorID": 0x1234, "SubsystemID": 1, "RevisionID": 1,
			"ClassCode": 0xff0000, "BARRegisters": 0, "BARRegistersSize": 65536, "BARMSIX": 2, "BARMSIXSize": 4096,
			"MSIXTableOffset": 0, "MSIXPBAOffset": 0x800, "NumVectors": 33,
		}},
		{"3", map[string]uint64{
			"IDValue": 0x424f4554, "VersionValue": 0x10000, "FeatureTCP": 1, "FeatureUDP": 2, "FeatureIPv6": 4, "FeatureTest": 8,
			"ControlRun": 1, "ControlStop": 2, "ControlReset": 0x80000000,
			"StatusReady": 1, "StatusRunning": 2, "StatusStopped": 4, "StatusFailed": 8, "StatusLink": 16, "StatusMSIX": 32, "StatusDMA": 64,
			"RegQueueBase": 0x1000, "RegQueueStride": 0x40, "RegDoorbells": 0x4000, "DoorbellStride": 8, "DoorbellOut": 4,
			"MaxQueues": 32, "MinRingLog2": 4, "MaxRingLog2": 16,
			"QueueCreate": 1, "QueuePause": 2, "QueueResume": 3, "QueueDrain": 4, "QueueDestroy": 5,
			"QueueDisabled": 0, "QueueRunning": 1, "QueuePaused": 2, "QueueDraining": 3, "QueueDrained": 4, "QueueError": 5,
		}},
		{"4.4", map[string]uint64{
			"EventBlockSize": 256, "EventInPublished": 0, "EventOutPublished": 0x40, "EventInFreed": 0x80, "EventOutFreed": 0xc0,
			"EventNever": 0, "EventAlways": 0x80000000, "IndexMask": 0x3fffffff,
		}},
		{"5", map[string]uint64{
			"DescriptorSize": 32, "WordOwner": 0x80, "WordASAP": 2, "WordModify": 1, "NoOrdinal": 0xffffffff,
			"FlagFinal": 1, "FlagPeek": 2, "FlagFragment": 4, "FlagGroup": 8, "FlagSkip": 16, "FlagRedirect": 32,
			"FlagOnce": 64, "FlagCombined": 64, "FlagReport": 128,
		}},
		{"5.8", map[string]uint64{
			"TerminateGraceful": 0, "TerminateAbort": 1, "TerminateSend": 2, "TerminateReceive": 3,
			"EndedOrderly": 0, "EndedHostReset": 1, "EndedPeerReset": 2, "EndedTimedOut": 3, "EndedHalfClosed": 4,
			"EndedStream": 5, "EndedListener": 6,
		}},
		{"6", map[string]uint64{
			"MaxControlSize": 1 << 20, "TupleHeaderSize": 8, "TupleAlign": 8, "AddressSize": 24, "TargetSize": 64,
			"TerminateSize": 16, "CancelSize": 16, "ReportSize": 64, "StateRecordSize": 192, "MaxTuples": 255,
		}},
		{"7", map[string]uint64{
			"HeldBufferSize": 16, "BufferTableSize": 16, "BufferEntrySize": 48, "NotifyPatternSize": 16, "MaxPattern": 64,
		}},
		{"7.1", map[string]uint64{
			"RecordExact": 1, "RecordSACK": 1, "RecordTimestamps": 2, "RecordScaling": 4,
			"TimerRetransmit": 1, "TimerKeepAlive": 2, "TimerTimeWait": 4, "TimerPersist": 8,
		}},
		{"9.3", map[string]uint64{
			"EventFirmware": 1, "EventLink": 2, "EventQueueError": 4, "EventNVM": 8, "EventChecker": 16, "EventRaise": 32, "EventStopped": 64,
		}},
		{"10", map[string]uint64{
			"NVMRead": 1, "NVMWrite": 2, "NVMCommit": 3, "NVMRestore": 4,
			"NVMIdle": 0, "NVMBusy": 1, "NVMDone": 2, "NVMFailed": 3, "NVMCorrupt": 0x100, "NVMSize": 512,
		}},
		{"12", map[string]uint64{
			"TestWrite": 1, "TestRead": 2, "TestIdle": 0, "TestBusy": 1, "TestDone": 2, "TestBadLength": 3, "TestFailed": 4,
			"TestMaxLength": 65536, "TestIncrement": 0x9e3779b9,
		}},
		{"15", map[string]uint64{
			"PlaceInput": 1, "PlaceOutput": 2, "PlaceBuffer": 3, "PlaceControl": 4,
			"TagSeen": 1, "TagTaken": 2, "TagAnswered": 3, "TagDone": 4,
			"CheckerHeaderSize": 16, "CheckerEntrySize": 160, "CheckerKept": 32, "CheckerTagEvents": 4,
		}},
	} {
		for name, want := range c.want {
			got, ok := all[name]
			if !ok || got != want {
				t.Errorf("§%s: %s is %#x (there: %v), want %#x", c.spec, name, got, ok, want)
			}
			delete(all, name)
		}
	}
	// What is left is compared with tables above.
	for name := range all {
		if !regexp.MustCompile(`^(Q?Reg|Status|Counter|Attr|Type|Kind|Check)[A-Z]|^NumCounters$`).MatchString(name) {
			t.Errorf("%s is compared with nothing", name)
		}
	}
}
