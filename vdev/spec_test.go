// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// specRow is a register's row in a table of SPEC.md.
type specRow struct {
	offset              uint64
	name, access, reset string
}

// specRows returns the rows of the register table under a heading of SPEC.md.
func specRows(t *testing.T, heading string) []specRow {
	t.Helper()
	text, err := os.ReadFile("abi/SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n"+heading)
	if !ok {
		t.Fatalf("SPEC.md has no %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n#")
	var rows []specRow
	for _, m := range regexp.MustCompile(`(?m)^\| (0x[0-9a-f]+) \| (\w+) \| (\w+) \| ([^|]*)\|`).FindAllStringSubmatch(section, -1) {
		offset, err := strconv.ParseUint(m[1], 0, 32)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, specRow{offset, m[2], m[3], strings.TrimSpace(m[4])})
	}
	return rows
}

// TestRegisterMapIsSPEC compares the tables with those of SPEC.md, row by row
// and both ways, and the values that a reset function shows with its column.
func TestRegisterMapIsSPEC(t *testing.T) {
	r := newRig(t, nil)
	r.setConfig(0x04, 2, 0x0002) // memory only: STATUS shows bus mastering
	names := map[access]string{accessRO: "RO", accessRW: "RW", accessWO: "WO", accessW1C: "W1C"}

	check := func(t *testing.T, rows []specRow, table []register, base uint64, q int) {
		t.Helper()
		if len(rows) < 10 {
			t.Fatalf("only %d rows found in SPEC.md", len(rows))
		}
		byOffset := map[uint64]register{}
		for _, reg := range table {
			if _, twice := byOffset[uint64(reg.offset)]; twice {
				t.Errorf("%s: two registers at %#x", reg.name, reg.offset)
			}
			byOffset[uint64(reg.offset)] = reg
		}
		for _, row := range rows {
			reg, ok := byOffset[row.offset]
			delete(byOffset, row.offset)
			if !ok {
				t.Errorf("SPEC.md has %s at %#x, the table has not", row.name, row.offset)
				continue
			}
			if reg.name != row.name || names[reg.access] != row.access {
				t.Errorf("%#x: %s %s, SPEC.md says %s %s", row.offset, reg.name, names[reg.access], row.name, row.access)
			}
			want := uint64(0)
			switch row.reset {
			case "n":
				want = 7 // as configured
			case "hash":
				want = 0x8395ff6a // CRC-32 of "toebox 1.0"
			case "q + 1":
				want = uint64(q) + 1
			case "":
				if strings.HasPrefix(row.name, "MAC_") {
					continue // TestNVM
				}
			default:
				var err error
				if want, err = strconv.ParseUint(row.reset, 0, 32); err != nil {
					t.Errorf("%s: reset value %q", row.name, row.reset)
				}
			}
			if got := r.get(base + row.offset); uint64(got) != want {
				t.Errorf("%s reads %#x after reset, SPEC.md says %#x", row.name, got, want)
			}
		}
		for _, reg := range byOffset {
			t.Errorf("the table has %s at %#x, SPEC.md has not", reg.name, reg.offset)
		}
	}
	check(t, specRows(t, "## 3. Register map"), registers(), 0, 0)
	for _, q := range []int{0, 1, 31} {
		t.Run(fmt.Sprint("queue ", q), func(t *testing.T) {
			check(t, specRows(t, "### 3.2 Queue registers"), queueRegisters(), 0x1000+0x40*uint64(q), q)
		})
	}
}
