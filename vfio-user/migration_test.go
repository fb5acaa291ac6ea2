// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// The states as the specification names and numbers them.
var stateNames = [8]string{"ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "", "PRE_COPY", ""}

// arcs are the direct transitions of the specification.
const arcs = `RUNNING STOP, STOP RUNNING, STOP STOP_COPY, STOP_COPY STOP, STOP RESUMING, RESUMING STOP,
	RUNNING PRE_COPY, PRE_COPY RUNNING, PRE_COPY STOP_COPY`

// ways returns all shortest ways between two states, by trying every one. A
// state of the saving group may only begin or end a way, and from STOP_COPY to
// PRE_COPY there is none.
func ways(from, to string, precopy bool) [][]string {
	if from == "STOP_COPY" && to == "PRE_COPY" {
		return nil
	}
	next := make(map[string][]string)
	for arc := range strings.SplitSeq(arcs, ",") {
		f := strings.Fields(arc)
		if precopy || f[0] != "PRE_COPY" && f[1] != "PRE_COPY" {
			next[f[0]] = append(next[f[0]], f[1])
		}
	}
	for found, paths := [][]string(nil), [][]string{{from}}; len(paths) > 0 && len(paths[0]) < 8; {
		var longer [][]string
		for _, p := range paths {
			at := p[len(p)-1]
			if at == to {
				found = append(found, p)
			}
			if len(p) > 1 && (at == "PRE_COPY" || at == "STOP_COPY") || at == to {
				continue
			}
			for _, n := range next[at] {
				if !slices.Contains(p, n) {
					longer = append(longer, append(slices.Clone(p), n))
				}
			}
		}
		if found != nil {
			return found
		}
		paths = longer
	}
	return nil
}

// startMigrator makes a device with or without StatePrecopy.
func startMigrator(t *testing.T, precopy bool) (*vfiousertest.Migrator, *vfiouser.Client) {
	cfg := vfiousertest.Config()
	m := vfiousertest.NewMigrator(cfg)
	var dev vfiouser.Device = m
	if precopy {
		dev = vfiousertest.Precopier{Migrator: m}
	}
	_, c := vfiousertest.Start(t, dev, cfg, vfiouser.ClientConfig{MaxTransfer: 1000})
	return m, c
}

// TestMigrationStates asks for every state from every state, and beyond.
func TestMigrationStates(t *testing.T) {
	for _, precopy := range []bool{false, true} {
		dev, c := startMigrator(t, precopy)
		if got, err := c.Migration(); got != precopy || err != nil {
			t.Errorf("migration: precopy %v, %v", got, err)
		}
		for from := range stateNames {
			for to := range len(stateNames) + 2 {
				if stateNames[from] == "" || from == 6 && !precopy {
					continue
				}
				// Get there: ERROR by a failure.
				if err := c.Reset(); err != nil {
					t.Fatal(err)
				}
				if from == 0 {
					dev.Fail(vfiouser.StateStop, vfiouser.ErrStateLost)
					if err := c.SetMigrationState(vfiouser.StateStop); !errors.Is(err, syscall.EIO) {
						t.Fatalf("to ERROR: %v", err)
					}
					dev.Fail(vfiouser.StateStop, nil)
				} else if err := c.SetMigrationState(vfiouser.MigrationState(from)); err != nil {
					t.Fatalf("to %s: %v", stateNames[from], err)
				}
				dev.Calls()

				var possible [][]string
				if from != 0 && to != 0 && to < len(stateNames) && stateNames[to] != "" {
					possible = ways(stateNames[from], stateNames[to], precopy)
				}
				err := c.SetMigrationState(vfiouser.MigrationState(to))
				way := []string{stateNames[from]}
				for _, call := range dev.Calls() {
					f := strings.Fields(call)
					if f[0] != "migrate" || f[1] != way[len(way)-1] {
						t.Fatalf("from %d to %d: call %q", from, to, call)
					}
					way = append(way, f[2])
				}
				now, errNow := c.MigrationState()
				if errNow != nil {
					t.Fatal(errNow)
				}
				if possible == nil {
					if !errors.Is(err, syscall.EINVAL) || len(way) > 1 || int(now) != from {
						t.Errorf("from %d to %d: %v by %v, now %v; want EINVAL", from, to, err, way, now)
					}
					continue
				}
				if err != nil || int(now) != to || !slices.ContainsFunc(possible, func(p []string) bool { return slices.Equal(p, way) }) {
					t.Errorf("from %d to %d: %v by %v, now %v; want by %v", from, to, err, way, now, possible)
				}
			}
		}
	}
}

// TestMigrationFailures has arcs fail, with the device where it was or not.
func TestMigrationFailures(t *testing.T) {
	dev, c := startMigrator(t, true)
	state := func(want vfiouser.MigrationState) {
		t.Helper()
		if s, err := c.MigrationState(); s != want || err != nil {
			t.Errorf("state %v, %v, want %v", s, err, want)
		}
	}
	dev.Fail(vfiouser.StateStopCopy, syscall.EBUSY)
	if err := c.SetMigrationState(vfiouser.StateStopCopy); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("failing arc: %v", err)
	}
	state(vfiouser.StateStop) // on the way from RUNNING
	dev.Fail(vfiouser.StateResuming, errors.Join(vfiouser.ErrStateLost, syscall.ENOMEM))
	if err := c.SetMigrationState(vfiouser.StateResuming); !errors.Is(err, syscall.ENOMEM) {
		t.Errorf("arc that ruins the device: %v", err)
	}
	state(vfiouser.StateError)
	// A reset that fails leaves it there.
	dev.SetHooks(vfiousertest.Hooks{Reset: func() error { return syscall.ENODEV }})
	if err := c.Reset(); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("reset: %v", err)
	}
	state(vfiouser.StateError)
	dev.SetHooks(vfiousertest.Hooks{})
	if err := c.Reset(); err != nil {
		t.Error(err)
	}
	state(vfiouser.StateRunning)
	// Data that the device does not have or want.
	dev.FailData(syscall.EILSEQ)
	p := make([]byte, 10)
	for _, s := range []vfiouser.MigrationState{vfiouser.StatePrecopy, vfiouser.StateStopCopy} {
		if err := c.SetMigrationState(s); s == vfiouser.StatePrecopy && err != nil {
			t.Error(err)
		}
		if _, err := c.ReadState(p); !errors.Is(err, syscall.EILSEQ) {
			t.Errorf("read in %v: %v", s, err)
		}
	}
	dev.Fail(vfiouser.StateResuming, nil)
	if err := errors.Join(c.Reset(), c.SetMigrationState(vfiouser.StateResuming)); err != nil {
		t.Error(err)
	}
	if err := c.WriteState(p); !errors.Is(err, syscall.EILSEQ) {
		t.Errorf("write: %v", err)
	}
}

// TestMigrationData moves a state of several messages from one device to another.
func TestMigrationData(t *testing.T) {
	from, source := startMigrator(t, true)
	to, destination := startMigrator(t, false)
	state := pattern(12345)
	from.SetState(state)
	if err := source.SetMigrationState(vfiouser.StatePrecopy); err != nil {
		t.Fatal(err)
	}
	if initial, dirty, err := source.PrecopyInfo(); initial != 12345 || dirty != 7 || err != nil {
		t.Errorf("precopy info %d, %d, %v", initial, dirty, err)
	}
	if err := destination.SetMigrationState(vfiouser.StateResuming); err != nil {
		t.Fatal(err)
	}
	move := func() {
		var got []byte
		for b := make([]byte, 4096); ; {
			n, err := source.ReadState(b)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if n > 1000 {
				t.Errorf("%d bytes in a message", n)
			}
			got = append(got, b[:n]...)
		}
		if err := destination.WriteState(got); err != nil {
			t.Error(err)
		}
	}
	move()
	if err := source.SetMigrationState(vfiouser.StateStopCopy); err != nil {
		t.Fatal(err)
	}
	from.SetState([]byte("rest"))
	move()
	if got := to.Written(); !bytes.Equal(got, append(state, "rest"...)) {
		t.Errorf("%d bytes arrived", len(got))
	}
	if err := errors.Join(source.WriteState(nil), destination.SetMigrationState(vfiouser.StateRunning)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("write to the source: %v", err)
	}
	if n, err := destination.ReadState(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("read from a device that runs: %d, %v", n, err)
	}
	if _, _, err := source.PrecopyInfo(); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("precopy info of a device that has stopped: %v", err)
	}
	if _, _, err := destination.PrecopyInfo(); !errors.Is(err, syscall.ENOTSUP) {
		t.Errorf("precopy info of a device without PRE_COPY: %v", err)
	}
}

// TestMigrationProtocol sends requests byte for byte, good ones and others.
func TestMigrationProtocol(t *testing.T) {
	cfg := vfiousertest.Config()
	cfg.MaxTransfer = 4096
	m := vfiousertest.NewMigrator(cfg)
	m.SetState([]byte("state"))
	srv, conn := vfiousertest.Serve(t, vfiousertest.Precopier{Migrator: m}, cfg)
	p := vfiousertest.NewPeer(t, conn)
	if got, want := p.Version(), `{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":4096,"max_dma_maps":65535,"pgsizes":4096,`+
		`"migration":{"pgsize":4096,"max_bitmap_size":4096}}}`; got != want || len(got)+1 > 194 {
		t.Errorf("version %s of %d bytes, want %s", got, len(got)+1, want)
	}
	ram := vfiousertest.Memory(t, 1<<24)
	const none, EINVAL, E2BIG, ENOTTY, ENOTSUP = 0, 22, 7, 25, 95
	for _, tt := range []struct {
		name    string
		cmd     uint16
		payload string
		errno   uint32
		reply   string
	}{
		{"no payload", 16, "", EINVAL, ""},
		{"half a head", 16, "08000000 0100", EINVAL, ""},
		{"argsz", 16, "07000000 01000400", EINVAL, ""},
		{"no operation", 16, "10000000 01000000", EINVAL, ""},
		{"get and set", 16, "10000000 02000300 02000000 ffffffff", EINVAL, ""},
		{"unknown flag", 16, "10000000 01000900", EINVAL, ""},
		{"probe alone", 16, "08000000 01000400", none, "08000000 01000400"},
		{"probe get", 16, "10000000 01000500", none, "10000000 01000500"},
		{"probe with data", 16, "0a000000 01000500 abcd", none, "0a000000 01000500 abcd"},
		{"probe with more data than argsz", 16, "09000000 01000500 abcd", EINVAL, ""},
		{"probe set of what can be read", 16, "08000000 01000700", ENOTTY, ""},
		{"probe get and set", 16, "08000000 02000700", none, "08000000 02000700"},
		{"probe start", 16, "08000000 06000600", none, "08000000 06000600"},
		{"probe stop", 16, "08000000 07000600", none, "08000000 07000600"},
		{"probe report", 16, "08000000 08000500", none, "08000000 08000500"},
		{"probe a feature of the kernel's", 16, "08000000 03000400", ENOTTY, ""},
		{"get start", 16, "20000000 06000100", ENOTTY, ""},
		{"set report", 16, "20000000 08000200", ENOTTY, ""},
		{"feature 0", 16, "20000000 00000100", ENOTTY, ""},
		{"feature 65535", 16, "20000000 ffff0200", ENOTTY, ""},

		{"migration", 16, "10000000 01000100", none, "10000000 01000100 0500000000000000"},
		{"migration with room in the request", 16, "10000000 01000100 0000000000000000", none, "10000000 01000100 0500000000000000"},
		{"migration with too little room", 16, "0f000000 01000100", EINVAL, ""},
		{"set migration", 16, "10000000 01000200 0500000000000000", ENOTTY, ""},
		{"state", 16, "10000000 02000100", none, "10000000 02000100 02000000 ffffffff"},
		{"state with too little room", 16, "0f000000 02000100", EINVAL, ""},
		{"set half a state", 16, "0c000000 02000200 06000000", EINVAL, ""},
		{"set with too little room", 16, "0f000000 02000200 06000000 ffffffff", EINVAL, ""},
		{"set to a state of peer-to-peer DMA", 16, "10000000 02000200 05000000 ffffffff", EINVAL, ""},
		{"set to ERROR", 16, "10000000 02000200 00000000 ffffffff", EINVAL, ""},
		{"set to 2^32-1", 16, "10000000 02000200 ffffffff ffffffff", EINVAL, ""},

		{"read in RUNNING", 17, "10000000 08000000", EINVAL, ""},
		{"precopy info in RUNNING", 19, "18000000 00000000 0000000000000000 0000000000000000", EINVAL, ""},
		{"write in RUNNING", 18, "0a000000 02000000 abcd", EINVAL, ""},
		{"set to PRE_COPY", 16, "10000000 02000200 06000000 efbeadde", none, "10000000 02000200 06000000 efbeadde"}, // as it came
		{"precopy info", 19, "18000000 00000000 0000000000000000 0000000000000000", none, "18000000 00000000 0500000000000000 0700000000000000"},
		{"precopy info, flags and more", 19, "20000000 01000000 0100000000000000 0100000000000000 0000000000000000", none, "18000000 00000000 0500000000000000 0700000000000000"},
		{"precopy info argsz", 19, "17000000 00000000 0000000000000000 0000000000000000", EINVAL, ""},
		{"precopy info short", 19, "18000000 00000000 0000000000000000 00000000000000", EINVAL, ""},
		{"read nothing", 17, "08000000 00000000", none, "08000000 00000000"},
		{"read", 17, "0a000000 02000000", none, "0a000000 02000000 7374"},
		{"read without counting data", 17, "08000000 02000000", none, "0a000000 02000000 6174"},
		{"read short", 17, "0c000000 04000000", none, "09000000 01000000 65000000"},
		{"read at the end", 17, "0a000000 02000000", none, "08000000 00000000 0000"},
		{"read with too little room", 17, "09000000 02000000", EINVAL, ""},
		{"read argsz", 17, "07000000 00000000", EINVAL, ""},
		{"read too much", 17, "09100000 01100000", E2BIG, ""},
		{"read 4 GiB", 17, "ffffffff ffffffff", EINVAL, ""},
		{"read 4 GiB without counting data", 17, "08000000 ffffffff", E2BIG, ""},
		{"read in half a payload", 17, "08000000", EINVAL, ""},
		{"set to RESUMING", 16, "10000000 02000200 04000000 ffffffff", none, "10000000 02000200 04000000 ffffffff"},
		{"write", 18, "0a000000 02000000 abcd", none, "08000000 02000000"},
		{"write without counting data", 18, "08000000 02000000 abcd", none, "08000000 02000000"},
		{"write nothing", 18, "08000000 00000000", none, "08000000 00000000"},
		{"write less than is said", 18, "0b000000 03000000 abcd", EINVAL, ""},
		{"write more than is said", 18, "09000000 01000000 abcd", EINVAL, ""},
		{"write with a wrong argsz", 18, "09000000 02000000 abcd", EINVAL, ""},
		{"write 4 GiB", 18, "08000000 ffffffff abcd", E2BIG, ""},
		{"write without a payload", 18, "", EINVAL, ""},
		{"read in RESUMING", 17, "10000000 08000000", EINVAL, ""},

		{"report without a log", 16, "28000000 08000100 0000000000000000 0010000000000000 0010000000000000", EINVAL, ""},
		{"start in half a request", 16, "14000000 06000200 0010000000000000 00000000", EINVAL, ""},
		{"start with page size 0", 16, "18000000 06000200 0000000000000000 00000000 00000000", EINVAL, ""},
		{"start with page size 4097", 16, "18000000 06000200 0110000000000000 00000000 00000000", EINVAL, ""},
		{"start with ranges that overlap", 16, `38000000 06000200 0010000000000000 02000000 00000000
			0010000000000000 0020000000000000  0000000000000000 0020000000000000`, EINVAL, ""},
		{"start with a range twice", 16, `38000000 06000200 0010000000000000 02000000 00000000
			0010000000000000 0010000000000000  0010000000000000 0010000000000000`, EINVAL, ""},
		{"start with an empty range", 16, "28000000 06000200 0010000000000000 01000000 00000000 0010000000000000 0000000000000000", EINVAL, ""},
		{"start with a range that wraps", 16, "28000000 06000200 0010000000000000 01000000 00000000 00f0ffffffffffff 0020000000000000", EINVAL, ""},
		{"start with a misaligned range", 16, "28000000 06000200 0020000000000000 01000000 00000000 0010000000000000 0020000000000000", EINVAL, ""},
		{"start with too little room", 16, "17000000 06000200 0010000000000000 00000000 00000000", EINVAL, ""},
		{"start with pages of 512", 16, "18000000 06000200 0002000000000000 00000000 00000000", none, "18000000 06000200 0010000000000000 00000000 00000000"},
		{"start again", 16, "18000000 06000200 0010000000000000 00000000 00000000", EINVAL, ""},
		{"stop", 16, "18000000 07000200 0010000000000000 00000000 00000000", none, "18000000 07000200 0010000000000000 00000000 00000000"},
		{"stop without data, again", 16, "08000000 07000200", none, "08000000 07000200"},
		{"start with two ranges", 16, `38000000 06000200 0010000000000000 02000000 00000000
			0010000000000000 0010000000000000  0000000000000000 0010000000000000`, none, `38000000 06000200 0010000000000000 02000000 00000000
			0010000000000000 0010000000000000  0000000000000000 0010000000000000`},
		{"stop the log of two ranges", 16, "08000000 07000200", none, "08000000 07000200"},
		// QEMU sends the kernel's struct: a pointer where the ranges should be.
		{"start with a pointer", 16, "20000000 06000200 0010000000000000 02000000 00000000 785634127f000000", none,
			"20000000 06000200 0010000000000000 02000000 00000000 785634127f000000"},

		{"report", 16, "28000000 08000100 0000000000000000 0010000000000000 0010000000000000", none,
			"28000000 08000100 0000000000000000 0010000000000000 0010000000000000 0100000000000000"},
		{"report what is clean now", 16, "28000000 08000100 0000000000000000 0010000000000000 0010000000000000", none,
			"28000000 08000100 0000000000000000 0010000000000000 0010000000000000 0000000000000000"},
		{"report with room in the request", 16, "28000000 08000100 00f0000000000000 0030000000000000 0010000000000000 ffffffffffffffff", none,
			"28000000 08000100 00f0000000000000 0030000000000000 0010000000000000 0200000000000000"},
		{"report with too little room", 16, "27000000 08000100 0000000000000000 0010000000000000 0010000000000000", EINVAL, ""},
		{"report of nothing", 16, "28000000 08000100 0000000000000000 0000000000000000 0010000000000000", EINVAL, ""},
		{"report that wraps", 16, "28000000 08000100 00f0ffffffffffff 0020000000000000 0010000000000000", EINVAL, ""},
		{"report in pages of 0", 16, "28000000 08000100 0000000000000000 0010000000000000 0000000000000000", EINVAL, ""},
		{"report in pages of 3", 16, "28000000 08000100 0000000000000000 0010000000000000 0300000000000000", EINVAL, ""},
		{"report in half a request", 16, "28000000 08000100 0000000000000000 0010000000000000 00100000000000", EINVAL, ""},
		{"report of more than a bitmap may have", 16, "ffffffff 08000100 0000000000000000 0110000800000000 0010000000000000", E2BIG, ""},
		{"report of everything in bytes", 16, "ffffffff 08000100 0000000000000000 ffffffffffffffff 0100000000000000", E2BIG, ""},
		{"report up to 2^64 in pages of 2^63", 16, "28000000 08000100 0100000000000000 ffffffffffffffff 0000000000000080", none,
			"28000000 08000100 0100000000000000 ffffffffffffffff 0000000000000080 0100000000000000"},

		{"unmap for a bitmap, without the bitmap", 3, "30000000 01000000 0000000000000000 0000010000000000", EINVAL, ""},
		{"unmap all for a bitmap", 3, "30000000 03000000 0000000000000000 0000000000000000 0010000000000000 0800000000000000", EINVAL, ""},
		{"unmap for half a bitmap", 3, "30000000 01000000 0000000000000000 0000010000000000 0010000000000000 08000000", EINVAL, ""},
		{"unmap for too small a bitmap", 3, "30000000 01000000 0000000000000000 0000010000000000 0010000000000000 0700000000000000", EINVAL, ""},
		{"unmap for too large a bitmap", 3, "ffffffff 01000000 0000000000000000 0000010000000000 0010000000000000 0110000000000000", E2BIG, ""},
		{"unmap for a bitmap of 2^64-1", 3, "ffffffff 01000000 0000000000000000 0000010000000000 0010000000000000 ffffffffffffffff", E2BIG, ""},
		{"unmap for a bitmap with too little room", 3, "2f000000 01000000 0000000000000000 0000010000000000 0010000000000000 0800000000000000", EINVAL, ""},
		{"unmap for a bitmap of pages of 6", 3, "30000000 01000000 0000000000000000 0000010000000000 0600000000000000 0800000000000000", EINVAL, ""},
		{"unmap half a map for a bitmap", 3, "30000000 01000000 0000000000000000 0080000000000000 0010000000000000 0800000000000000", EINVAL, ""},
		{"unmap for a bitmap", 3, "38000000 01000000 0000000000000000 0000010000000000 0010000000000000 1000000000000000", none,
			"38000000 01000000 0000000000000000 0000010000000000 0010000000000000 1000000000000000 0600000000000000 0000000000000000"},
		{"report what is unmapped, and taken", 16, "28000000 08000100 0000000000000000 0000010000000000 0010000000000000", none,
			"28000000 08000100 0000000000000000 0000010000000000 0010000000000000 0000000000000000"},
		{"stop at the end", 16, "08000000 07000200", none, "08000000 07000200"},
		{"unmap for a bitmap without a log", 3, "30000000 01000000 0000000000000000 0000010000000000 0010000000000000 0800000000000000", EINVAL, ""},
	} {
		switch tt.name {
		case "report":
			expect(t, p.Do(dmaMap(1, 0, 0, 1<<16), int(ram.Fd())), 0)
			// The first page and the last, which is in two reports.
			if err := errors.Join(srv.DMA().Write(0, []byte{1}), srv.DMA().Write(0xffff, []byte{1})); err != nil {
				t.Fatal(err)
			}
		case "report with room in the request":
			// 0xf000 is clean, 0x10000 not.
			expect(t, p.Do(dmaMap(1, 0x10000, 0x10000, 1<<16), int(ram.Fd())), 0)
			if err := srv.DMA().Write(0x10000, []byte{1}); err != nil {
				t.Fatal(err)
			}
			expect(t, p.Do(vfiousertest.Message{ID: 2, Command: 16, Payload: unhex(t, "28000000 08000100 00f0000000000000 0010000000000000 0010000000000000")}), 0)
		case "report up to 2^64 in pages of 2^63", "unmap for a bitmap":
			if err := srv.DMA().Write(0x1fff, []byte{1, 2}); err != nil {
				t.Fatal(err)
			}
		}
		r := p.Do(vfiousertest.Message{ID: 7, Command: tt.cmd, Payload: unhex(t, tt.payload)})
		wantFlags := uint32(vfiousertest.Reply)
		if tt.errno != 0 {
			wantFlags |= vfiousertest.Failed
		}
		if r.Errno != tt.errno || r.Flags != wantFlags || !slices.Equal(r.Payload, unhex(t, tt.reply)) {
			t.Errorf("%s: errno %v flags %#x payload %x, want errno %v payload %s", tt.name, syscall.Errno(r.Errno), r.Flags, r.Payload, syscall.Errno(tt.errno), tt.reply)
		}
	}
	if got := m.Written(); !bytes.Equal(got, unhex(t, "abcd abcd")) {
		t.Errorf("written %x", got)
	}
	want := []string{"migrate RUNNING PRE_COPY", "migrate PRE_COPY RUNNING", "migrate RUNNING STOP", "migrate STOP RESUMING"}
	if got := m.Calls(); !slices.Equal(got, want) {
		t.Errorf("device saw %q", got)
	}
}

// selfResetter resets itself when its client goes, unless it keeps its state.
type selfResetter struct {
	*vfiousertest.Migrator
	srv   *vfiouser.Server
	keeps atomic.Bool
}

func (d *selfResetter) Disconnected() {
	if !d.keeps.Load() {
		d.srv.DeviceReset()
	}
	d.Migrator.Disconnected()
}

// TestMigrationDeviceReset: a reset that the device makes of its own accord leads
// to RUNNING and ends a transfer, as one by message does.
func TestMigrationDeviceReset(t *testing.T) {
	cfg := vfiousertest.Config()
	dev := &selfResetter{Migrator: vfiousertest.NewMigrator(cfg)}
	srv, err := vfiouser.NewServer(dev, cfg)
	if err != nil {
		t.Fatal(err)
	}
	dev.srv = srv
	dev.SetHooks(vfiousertest.Hooks{Write: func(int, uint64, []byte) error { srv.DeviceReset(); return nil }})
	connect := func() *vfiouser.Client {
		c, err := vfiouser.NewClient(vfiousertest.Connect(t, srv), vfiouser.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := connect()
	running := func(after string) {
		t.Helper()
		if s, err := c.MigrationState(); s != vfiouser.StateRunning || err != nil {
			t.Errorf("after %s: %v, %v", after, s, err)
		}
	}
	for _, from := range []vfiouser.MigrationState{vfiouser.StateStop, vfiouser.StateStopCopy, vfiouser.StateResuming, vfiouser.StateError} {
		if from == vfiouser.StateError {
			dev.Fail(vfiouser.StateStop, vfiouser.ErrStateLost)
			_ = c.SetMigrationState(vfiouser.StateStop)
			dev.Fail(vfiouser.StateStop, nil)
		} else if err := c.SetMigrationState(from); err != nil {
			t.Fatal(err)
		}
		if s, err := c.MigrationState(); s != from || err != nil {
			t.Fatalf("%v, %v, want %v", s, err, from)
		}
		if err := c.WriteRegion(vfiouser.RegionConfig, 0x50, []byte{0x80}); err != nil {
			t.Fatal(err)
		}
		running("a reset in " + from.String())
		if _, err := c.ReadState(make([]byte, 8)); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("read: %v", err)
		}
		if err := c.WriteState(make([]byte, 8)); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("write: %v", err)
		}
		dev.Calls()
		if err := c.SetMigrationState(vfiouser.StateStop); err != nil || !slices.Equal(dev.Calls(), []string{"migrate RUNNING STOP"}) {
			t.Errorf("stop after a reset in %v: %v", from, err)
		}
		if err := c.Reset(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.SetMigrationState(vfiouser.StateStop); err != nil {
		t.Fatal(err)
	}
	c.Close()
	<-dev.Gone
	c = connect()
	running("the end of a client")
	// A device that stays as it is stays where it is.
	dev.keeps.Store(true)
	if err := c.SetMigrationState(vfiouser.StateStop); err != nil {
		t.Fatal(err)
	}
	c.Close()
	<-dev.Gone
	c = connect()
	if s, err := c.MigrationState(); s != vfiouser.StateStop || err != nil {
		t.Errorf("the next client finds %v, %v", s, err)
	}
}
