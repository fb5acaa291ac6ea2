// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"toebox/vfio-user/vfiousertest"
)

// unhex decodes hex digits and skips white space and text from # to the end of
// the line. Numbers are little-endian, as on the machines that run these tests.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var digits strings.Builder
	for _, line := range strings.Split(s, "\n") {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// step is a request and the reply it must get.
type step struct {
	name       string
	send, want string
	fds        func() []int
}

// TestQEMUConnect replays byte for byte what QEMU 11 sends when it attaches a
// device on q35 without a vIOMMU, in its order.
func TestQEMUConnect(t *testing.T) {
	cfg := vfiousertest.Config()
	dev := vfiousertest.NewDevice(cfg)
	dev.Set(7, 0, unhex(t, "36 1b 00 00 00 00 10 00"))
	srv, conn := vfiousertest.Serve(t, dev, cfg)
	p := vfiousertest.NewPeer(t, conn)
	ram := vfiousertest.Memory(t, 64<<20)
	ramFD := func() []int { return []int{int(ram.Fd())} }
	errFD := vfiousertest.NewEventFD(t)

	steps := []step{
		{"VERSION", `0100 0100 d6000000 00000000 00000000 # id, command, size 16+4+194, flags, errno
			0000 0000` + hex.EncodeToString([]byte(vfiousertest.QEMUVersion+"\x00")),
			`0100 0100 79000000 01000000 00000000
			0000 0000` + hex.EncodeToString([]byte(`{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096}}`+"\x00")), nil},
		{"DMA_MAP RAM", `0200 0200 30000000 00000000 00000000
			20000000 03000000 # argsz 32, read and write
			0000000000000000  # file offset
			0000000000000000  # address
			0000000400000000  # 64 MiB`,
			`0200 0200 10000000 01000000 00000000`, ramFD},
		{"DMA_MAP BIOS without a file", `0300 0200 30000000 00000000 00000000
			20000000 01000000 0000000000000000 0000fcff00000000 0000040000000000`,
			`0300 0200 10000000 01000000 00000000`, nil},
		{"GET_INFO", `0400 0400 20000000 00000000 00000000 10000000 00000000 00000000 00000000`,
			`0400 0400 20000000 01000000 00000000 10000000 03000000 09000000 05000000`, nil},
		{"GET_REGION_INFO BAR0", `0500 0500 30000000 00000000 00000000
			20000000 00000000 00000000 00000000 0000000000000000 0000000000000000`,
			`0500 0500 30000000 01000000 00000000
			20000000 03000000 00000000 00000000 0010000000000000 0000000000000000`, nil},
		{"GET_REGION_INFO BAR1, absent", `0600 0500 30000000 00000000 00000000
			20000000 00000000 01000000 00000000 0000000000000000 0000000000000000`,
			`0600 0500 30000000 01000000 00000000
			20000000 00000000 01000000 00000000 0000000000000000 0000000000000000`, nil},
		{"GET_REGION_INFO config", `0700 0500 30000000 00000000 00000000
			20000000 00000000 07000000 00000000 0000000000000000 0000000000000000`,
			`0700 0500 30000000 01000000 00000000
			20000000 03000000 07000000 00000000 0010000000000000 0000000000000000`, nil},
		{"GET_IRQ_INFO ERR", `0800 0700 20000000 00000000 00000000 10000000 00000000 03000000 00000000`,
			`0800 0700 20000000 01000000 00000000 10000000 01000000 03000000 01000000`, nil},
		{"REGION_READ whole config", `0900 0900 20000000 00000000 00000000 0000000000000000 07000000 00100000`,
			`0900 0900 20100000 01000000 00000000 0000000000000000 07000000 00100000
			361b000000001000` + strings.Repeat("00", 4088), nil},
		{"ROM register sized", `0a00 0a00 24000000 00000000 00000000 3000000000000000 07000000 04000000 00f8ffff`,
			`0a00 0a00 20000000 01000000 00000000 3000000000000000 07000000 04000000`, nil},
		{"REGION_READ config 4", `0b00 0900 20000000 00000000 00000000 3000000000000000 07000000 04000000`,
			`0b00 0900 24000000 01000000 00000000 3000000000000000 07000000 04000000 00f8ffff`, nil},
		{"GET_IRQ_INFO MSI-X", `0c00 0700 20000000 00000000 00000000 10000000 00000000 02000000 00000000`,
			`0c00 0700 20000000 01000000 00000000 10000000 01000000 02000000 20000000`, nil},
		{"SET_IRQS ERR", `0d00 0800 24000000 00000000 00000000 14000000 24000000 03000000 00000000 01000000`,
			`0d00 0800 10000000 01000000 00000000`, func() []int { return []int{errFD.FD()} }},
		{"DEVICE_RESET", `0e00 0d00 10000000 00000000 00000000`, `0e00 0d00 10000000 01000000 00000000`, nil},
		{"DMA_UNMAP RAM", `0f00 0300 28000000 00000000 00000000 18000000 00000000 0000000000000000 0000000400000000`,
			`0f00 0300 28000000 01000000 00000000 18000000 00000000 0000000000000000 0000000400000000`, nil},
		{"DMA_MAP low RAM", `1000 0200 30000000 00000000 00000000
			20000000 03000000 0000000000000000 0000000000000000 00000c0000000000`,
			`1000 0200 10000000 01000000 00000000`, ramFD},
		{"DMA_MAP option ROM without a file", `1100 0200 30000000 00000000 00000000
			20000000 01000000 0000000000000000 00000c0000000000 0000020000000000`,
			`1100 0200 10000000 01000000 00000000`, nil},
		{"DMA_MAP high RAM", `1200 0200 30000000 00000000 00000000
			20000000 03000000 0000100000000000 0000100000000000 0000f00300000000`,
			`1200 0200 10000000 01000000 00000000`, ramFD},
		{"SET_IRQS MSI-X, first without a file", `1300 0800 24000000 00000000 00000000 14000000 24000000 02000000 00000000 01000000`,
			`1300 0800 10000000 01000000 00000000`, nil},
		{"phantom DMA_UNMAP of a power of two", `1400 0300 28000000 00000000 00000000 18000000 00000000 0000000001000000 0000000001000000`,
			`1400 0300 28000000 01000000 00000000 18000000 00000000 0000000001000000 0000000000000000`, nil},
	}
	for _, s := range steps {
		t.Log(s.name)
		var fds []int
		if s.fds != nil {
			fds = s.fds()
		}
		p.Send(unhex(t, s.send), fds...)
		p.Expect(unhex(t, s.want))
	}
	if got := srv.Stats(); got.Errors != 0 || got.DMAMapped != 4 {
		t.Errorf("stats: %+v", got)
	}
	want := []string{"read 7 0x0 4096", "write 7 0x30 00f8ffff", "read 7 0x30 4", "reset"}
	if got := dev.Calls(); !slices.Equal(got, want) {
		t.Errorf("device saw %q, want %q", got, want)
	}
	if err := srv.Trigger(3, 0); err != nil {
		t.Error(err)
	}
	if n := errFD.Wait(); n != 1 {
		t.Errorf("ERR signalled %d times", n)
	}
	conn.Close()
	<-dev.Gone
	if got := srv.Stats(); got.DMAMapped != 0 {
		t.Errorf("%d DMA maps after the client went", got.DMAMapped)
	}
	if err := srv.DMA().Read(0, make([]byte, 1)); err == nil {
		t.Error("guest memory can be read after the client went")
	}
}

// TestDisagreements holds the server to what it chose where specification and
// implementations differ.
func TestDisagreements(t *testing.T) {
	cfg := vfiousertest.Config()
	dev := vfiousertest.NewDevice(cfg)
	_, conn := vfiousertest.Serve(t, dev, cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	ram := vfiousertest.Memory(t, 1<<20)
	file := []int{int(ram.Fd())}

	const (
		EINVAL, EEXIST, ENOTTY, ENOTSUP = 22, 17, 25, 95
	)
	for _, tt := range []struct {
		name    string
		cmd     uint16
		payload string
		fds     []int
		errno   uint32
		reply   string
	}{
		{"map", 2, "20000000 03000000 0000000000000000 0000010000000000 0000010000000000", file, 0, ""},
		{"the same again", 2, "20000000 03000000 0000000000000000 0000010000000000 0000010000000000", file, 0, ""},
		{"the same with another offset", 2, "20000000 03000000 0010000000000000 0000010000000000 0000010000000000", file, EEXIST, ""},
		{"the same with another protection", 2, "20000000 01000000 0000000000000000 0000010000000000 0000010000000000", file, EEXIST, ""},
		{"the same without a file", 2, "20000000 03000000 0000000000000000 0000010000000000 0000010000000000", nil, EEXIST, ""},
		{"overlap", 2, "20000000 03000000 0000000000000000 00f0010000000000 0020000000000000", file, EEXIST, ""},
		{"size 0", 2, "20000000 03000000 0000000000000000 0000020000000000 0000000000000000", file, EINVAL, ""},
		{"wraparound", 2, "20000000 03000000 0000000000000000 00f0ffffffffffff 0020000000000000", nil, EINVAL, ""},
		{"up to 2^64", 2, "20000000 03000000 0000000000000000 00f0ffffffffffff 0010000000000000", nil, 0, ""},
		{"misaligned address", 2, "20000000 03000000 0000000000000000 0108020000000000 0010000000000000", nil, EINVAL, ""},
		{"misaligned size", 2, "20000000 03000000 0000000000000000 0000020000000000 0110000000000000", nil, EINVAL, ""},
		{"misaligned offset", 2, "20000000 03000000 0008000000000000 0000020000000000 0010000000000000", file, EINVAL, ""},
		{"beyond the file", 2, "20000000 03000000 0000100000000000 0000020000000000 0010000000000000", file, EINVAL, ""},
		{"offset wraps", 2, "20000000 03000000 00f0ffffffffffff 0000020000000000 0020000000000000", file, EINVAL, ""},
		{"no right at all", 2, "20000000 00000000 0000000000000000 0000020000000000 0010000000000000", file, EINVAL, ""},
		{"unknown flag", 2, "20000000 11000000 0000000000000000 0000020000000000 0010000000000000", file, EINVAL, ""},
		{"mmap access without a file", 2, "20000000 07000000 0000000000000000 0000020000000000 0010000000000000", nil, EINVAL, ""},
		{"mmap access", 2, "20000000 07000000 0000000000000000 0000020000000000 0010000000000000", file, 0, ""},
		{"both access modes", 2, "20000000 0f000000 0000000000000000 0000030000000000 0010000000000000", file, EINVAL, ""},
		{"file access without a file", 2, "20000000 0b000000 0000000000000000 0000030000000000 0010000000000000", nil, EINVAL, ""},
		{"file access", 2, "20000000 0b000000 0108000000000000 0000030000000000 0010000000000000", file, 0, ""},
		{"file access, the same again", 2, "20000000 0b000000 0108000000000000 0000030000000000 0010000000000000", file, 0, ""},
		{"the same by mmap", 2, "20000000 07000000 0000000000000000 0000030000000000 0010000000000000", file, EEXIST, ""},
		{"file access beyond the file", 2, "20000000 0b000000 01f00f0000000000 0000040000000000 0010000000000000", file, EINVAL, ""},
		{"two files", 2, "20000000 03000000 0000000000000000 0000030000000000 0010000000000000", []int{file[0], file[0]}, EINVAL, ""},
		{"argsz too small", 2, "1f000000 03000000 0000000000000000 0000030000000000 0010000000000000", file, EINVAL, ""},
		{"short payload", 2, "20000000 03000000 0000000000000000", file, EINVAL, ""},

		{"unmap never mapped", 3, "18000000 00000000 0000000400000000 0010000000000000", nil, 0, "18000000 00000000 0000000400000000 0000000000000000"},
		{"unmap bisecting at the front", 3, "18000000 00000000 0010010000000000 00f0000000000000", nil, EINVAL, ""},
		{"unmap bisecting at the end", 3, "18000000 00000000 0000010000000000 00f0000000000000", nil, EINVAL, ""},
		{"unmap inside", 3, "18000000 00000000 0010010000000000 0010000000000000", nil, EINVAL, ""},
		{"unmap superset", 3, "18000000 00000000 0000000000000000 0000000001000000", nil, 0, "18000000 00000000 0000000000000000 0020010000000000"},
		{"unmap size 0", 3, "18000000 00000000 0000000000000000 0000000000000000", nil, EINVAL, ""},
		{"unmap wraparound", 3, "18000000 00000000 0010000000000000 00f0ffffffffffff", nil, 0, "18000000 00000000 0010000000000000 0010000000000000"},
		{"unmap beyond 2^64", 3, "18000000 00000000 0020000000000000 00f0ffffffffffff", nil, EINVAL, ""},
		{"unmap misaligned", 3, "18000000 00000000 0100000000000000 0010000000000000", nil, EINVAL, ""},
		{"unmap all with a range", 3, "18000000 02000000 0000000000000000 0010000000000000", nil, EINVAL, ""},
		{"unmap dirty bitmap", 3, "30000000 01000000 0000000000000000 0010000000000000 0010000000000000 0800000000000000", nil, EINVAL, ""},
		{"unmap unknown flag", 3, "18000000 04000000 0000000000000000 0010000000000000", nil, EINVAL, ""},
		{"unmap all in half a payload", 3, "18000000 02000000 00000000", nil, EINVAL, ""},
		{"unmap flags alone", 3, "18000000 01000000", nil, EINVAL, ""},
		{"unmap without a payload", 3, "", nil, EINVAL, ""},
		{"unmap argsz", 3, "17000000 00000000 0000000000000000 0010000000000000", nil, EINVAL, ""},
		{"unmap with a file", 3, "18000000 00000000 0000000000000000 0010000000000000", file, EINVAL, ""},
		{"map once more", 2, "20000000 03000000 0000000000000000 0000010000000000 0000010000000000", file, 0, ""},
		{"unmap all", 3, "18000000 02000000 0000000000000000 0000000000000000", nil, 0, "18000000 02000000 0000000000000000 0000010000000000"},

		{"zero-count read", 9, "0400000000000000 07000000 00000000", nil, 0, "0400000000000000 07000000 00000000"},
		{"zero-count write", 10, "0400000000000000 07000000 00000000", nil, 0, "0400000000000000 07000000 00000000"},
		{"migration of a device that has none", 16, "10000000 01000100", nil, ENOTTY, ""},
		{"probe for it", 16, "10000000 01000500", nil, ENOTTY, ""},
		{"migration state", 16, "10000000 02000200 06000000 ffffffff", nil, ENOTTY, ""},
		{"feature without payload", 16, "", nil, EINVAL, ""},
		{"write multi not negotiated", 15, "0000000000000000", nil, ENOTSUP, ""},
		{"region io fds", 6, "10000000 00000000 00000000 00000000", nil, ENOTSUP, ""},
		{"dirty pages", 14, "10000000 00000000", nil, ENOTSUP, ""},
		{"migration data read", 17, "08000000 00000000", nil, ENOTSUP, ""},
		{"migration data write", 18, "08000000 00000000", nil, ENOTSUP, ""},
		{"precopy info", 19, "18000000 00000000", nil, ENOTSUP, ""},
		{"unknown", 4711, "", nil, ENOTSUP, ""},
		{"command 0", 0, "", nil, ENOTSUP, ""},
		{"dma read to a server", 11, "0000000000000000 0100000000000000", nil, EINVAL, ""},
		{"version again", 1, "00000000", nil, EINVAL, ""},
	} {
		r := p.Do(vfiousertest.Message{ID: 7, Command: tt.cmd, Payload: unhex(t, tt.payload)}, tt.fds...)
		wantFlags := uint32(vfiousertest.Reply)
		if tt.errno != 0 {
			wantFlags |= vfiousertest.Failed
		}
		if r.Errno != tt.errno || r.Flags != wantFlags || !slices.Equal(r.Payload, unhex(t, tt.reply)) {
			t.Errorf("%s: errno %v flags %#x payload %x, want errno %v payload %s", tt.name, unix.Errno(r.Errno), r.Flags, r.Payload, unix.Errno(tt.errno), tt.reply)
		}
	}
	if c := dev.Calls(); len(c) != 0 {
		t.Errorf("device saw %q", c)
	}
}
