// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// findQEMU returns a QEMU that has vfio-user-pci.
func findQEMU(t *testing.T) string {
	var tried []string
	if q := os.Getenv("TOEBOX_QEMU"); q != "" {
		tried = append(tried, q)
	}
	if cache, err := os.UserCacheDir(); err == nil {
		tried = append(tried, filepath.Join(cache, "toebox", "qemu", "qemu-system-x86_64"))
	}
	tried = append(tried, "qemu-system-x86_64")
	for _, q := range tried {
		out, err := exec.Command(q, "-device", "vfio-user-pci,help").Output()
		if err == nil && bytes.Contains(out, []byte("socket=")) {
			return q
		}
	}
	if slices.Contains(strings.Split(os.Getenv("CI_REQUIRE"), ","), "qemu") {
		t.Fatalf("no QEMU with vfio-user-pci among %q", tried)
	}
	t.Skipf("no QEMU with vfio-user-pci among %q: set TOEBOX_QEMU, or let `make run` get one", tried)
	return ""
}

// qtest speaks QEMU's qtest protocol.
type qtest struct {
	t   *testing.T
	in  *bufio.Scanner
	out *os.File
}

// do sends a line and returns what follows OK.
func (q *qtest) do(format string, a ...any) string {
	q.t.Helper()
	fmt.Fprintf(q.out, format+"\n", a...)
	for q.in.Scan() {
		if rest, ok := strings.CutPrefix(q.in.Text(), "OK"); ok {
			return strings.TrimSpace(rest)
		}
		if !strings.HasPrefix(q.in.Text(), "IRQ") {
			q.t.Fatalf("qtest %s: %s", fmt.Sprintf(format, a...), q.in.Text())
		}
	}
	q.t.Fatalf("qtest %s: no answer: %v", fmt.Sprintf(format, a...), q.in.Err())
	return ""
}

func (q *qtest) config(reg uint32, width string, v uint32) {
	q.do("outl 0xcf8 %#x", 0x80000000|4<<11|reg&^3)
	q.do("out%s %#x %#x", width, 0xcfc+reg&3, v)
}

// startQEMU starts a machine of 64 MiB with the device that is served at path in
// slot 4. stop, which the test's end calls too, ends it and returns what it said.
func startQEMU(t *testing.T, qemu, path string) (q *qtest, stop func() string) {
	t.Helper()
	ours, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	theirsIn, oursOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(qemu, "-nodefaults", "-display", "none", "-machine", "q35,memory-backend=ram", "-accel", "qtest",
		"-m", "64M", "-object", "memory-backend-memfd,id=ram,size=64M,share=on", "-qtest", "stdio", "-qtest-log", "none",
		"-device", fmt.Sprintf(`{"driver":"vfio-user-pci","addr":"4.0","socket":{"type":"unix","path":%q}}`, path))
	cmd.Stdin, cmd.Stdout = theirsIn, theirs
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	theirs.Close()
	theirsIn.Close()
	if err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(60*time.Second, func() { cmd.Process.Kill() })
	stopped := false
	stop = func() string {
		if !stopped {
			stopped = true
			oursOut.Close()
			cmd.Process.Kill()
			cmd.Wait()
			kill.Stop()
			ours.Close()
		}
		return stderr.String()
	}
	t.Cleanup(func() {
		said := stop()
		if t.Failed() {
			t.Logf("%s\n%s", cmd, said)
		}
	})
	return &qtest{t: t, in: bufio.NewScanner(ours), out: oursOut}, stop
}

// deviceSpace is the start of a configuration space: ids, no command, class ff,
// and MSI-X with 4 vectors, its table at 0x800 and PBA at 0xc00 of BAR0.
func deviceSpace(t *testing.T) []byte {
	space := make([]byte, 0x60)
	copy(space, unhex(t, "efbe adde 0000 1000 01 0000ff 00000000 00000000"))
	copy(space[0x2c:], unhex(t, "efbe adde 00000000 40"))
	copy(space[0x40:], unhex(t, "11 00 0300 00080000 000c0000"))
	return space
}

// TestQEMU attaches a device to the real client: DMA both ways, with and
// without a file, BAR accesses, posted writes and an interrupt set-up.
func TestQEMU(t *testing.T) {
	qemu := findQEMU(t)
	cfg := vfiousertest.Config()
	cfg.Regions[vfiouser.RegionROM] = vfiouser.Region{}
	cfg.IRQs[vfiouser.IRQINTx] = vfiouser.IRQ{}
	cfg.IRQs[vfiouser.IRQMSIX].Count = 4
	dev := vfiousertest.NewDevice(cfg)
	dev.Set(vfiouser.RegionConfig, 0, deviceSpace(t))
	srv, err := vfiouser.NewServer(dev, cfg)
	if err != nil {
		t.Fatal(err)
	}
	path, _ := listen(t, srv)

	q, stop := startQEMU(t, qemu, path)
	const bar = 0xe0000000
	q.config(0x10, "l", bar)
	q.config(0x04, "w", 0x6) // memory, bus master
	d := srv.DMA()
	if !d.Backed(0x1000, 0x1000, vfiouser.ProtRead|vfiouser.ProtWrite) {
		t.Error("guest memory has no file")
	}
	// DMA both ways.
	if err := d.Write(0x2000, []byte("from the device")); err != nil {
		t.Error(err)
	}
	if got, want := q.do("read 0x2000 15"), "0x"+hex.EncodeToString([]byte("from the device")); got != want {
		t.Errorf("guest reads %s, want %s", got, want)
	}
	q.do("write 0x3000 4 0xdeadbeef")
	b := make([]byte, 4)
	if err := d.Read(0x3000, b); err != nil || !bytes.Equal(b, []byte{0xde, 0xad, 0xbe, 0xef}) {
		t.Errorf("device reads %x, %v", b, err)
	}
	// The firmware's ROM has no file: DMA by message.
	rom := make([]byte, 16)
	if d.Backed(0xfffffff0, 16, vfiouser.ProtRead) {
		t.Error("ROM has a file")
	}
	if err := d.Read(0xfffffff0, rom); err != nil || rom[0] != 0xea {
		t.Errorf("ROM at the reset vector: %x, %v", rom, err)
	}
	var e *vfiouser.DMAError
	if err := d.Write(0xfffffff0, rom); !errors.As(err, &e) {
		t.Errorf("write to ROM: %v", err)
	}
	// The BAR: stores are posted, loads are not.
	dev.Calls()
	posted := srv.Stats().PostedWrites
	q.do("writel %#x 0x11223344", bar+0x10)
	q.do("writeq %#x 0x1122334455667788", bar+0x18)
	if got := q.do("readl %#x", bar+0x10); got != "0x0000000011223344" {
		t.Errorf("guest reads %s", got)
	}
	want := []string{"write 0 0x10 44332211", "write 0 0x18 8877665544332211", "read 0 0x10 4"}
	if got := dev.Calls(); !slices.Equal(got, want) || srv.Stats().PostedWrites != posted+2 {
		t.Errorf("device saw %q with %d posted writes", got, srv.Stats().PostedWrites-posted)
	}
	// MSI-X: a table entry, enabled, pointing at guest memory.
	q.do("writel %#x %#x", bar+0x800+16, 0xfee00000)
	q.do("writel %#x 0x4041", bar+0x800+24)
	q.do("writel %#x 0", bar+0x800+28)
	q.config(0x40, "l", 0x80000011)
	triggered := srv.Stats().Triggers
	waitFor(t, "vector 1 to be enabled", func() bool {
		if err := srv.Trigger(vfiouser.IRQMSIX, 1); err != nil {
			t.Error(err)
		}
		return srv.Stats().Triggers > triggered
	})
	// A reset of the machine resets the device and maps everything anew.
	q.do("outb 0xcf9 0x6")
	waitFor(t, "the reset", func() bool { return slices.Contains(dev.Calls(), "reset") })
	if st := srv.Stats(); st.Errors != 0 || st.NoReplyFailed != 0 || st.StrayReplies != 0 || st.DMAMapped == 0 {
		t.Errorf("stats %+v", st)
	}
	said := stop()
	<-dev.Gone
	if st := srv.Stats(); st.DMAMapped != 0 {
		t.Errorf("stats %+v", st)
	}
	if said != "" {
		t.Errorf("QEMU says: %s", said)
	}
}

// TestQEMUAreas attaches a device with a BAR that the guest can map in part: a
// store there reaches the device's memory and no message is sent for it.
func TestQEMUAreas(t *testing.T) {
	qemu := findQEMU(t)
	shared, err := vfiouser.NewShared(0x2000)
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	cfg := vfiousertest.Config()
	cfg.Regions[vfiouser.RegionROM] = vfiouser.Region{}
	cfg.Regions[vfiouser.RegionBAR1] = vfiouser.Region{Size: 0x4000, Flags: rw}
	cfg.IRQs[vfiouser.IRQINTx] = vfiouser.IRQ{}
	cfg.IRQs[vfiouser.IRQMSIX].Count = 4
	// Two areas, with a hole between them, in one file that is laid out as the BAR.
	all, err := vfiouser.NewShared(0x4000)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	file := all.Area(0).File
	cfg.Regions[vfiouser.RegionBAR1].Areas = []vfiouser.Area{
		{Offset: 0, Size: 0x1000, File: file}, {Offset: 0x2000, Size: 0x1000, File: file, FileOffset: 0x2000},
	}
	cfg.Regions[vfiouser.RegionBAR2] = vfiouser.Region{Size: 0x2000, Flags: rw, Areas: []vfiouser.Area{shared.Area(0)}}
	dev := vfiousertest.NewDevice(cfg)
	dev.Set(vfiouser.RegionConfig, 0, deviceSpace(t))
	srv, err := vfiouser.NewServer(dev, cfg)
	if err != nil {
		t.Fatal(err)
	}
	path, _ := listen(t, srv)
	q, stop := startQEMU(t, qemu, path)
	const bar1, bar2 = 0xe0010000, 0xe0020000
	q.config(0x14, "l", bar1)
	q.config(0x18, "l", bar2)
	q.config(0x04, "w", 0x6)
	messages := srv.Stats().Messages
	dev.Calls()
	for _, tt := range []struct {
		s           *vfiouser.Shared
		addr, where uint64
		v           uint32
	}{{all, bar1 + 8, 8, 0x11223344}, {all, bar1 + 0x2ffc, 0x2ffc, 0x55667788}, {shared, bar2 + 0x1ffc, 0x1ffc, 0x99aabbcc}} {
		q.do("writel %#x %#x", tt.addr, tt.v)
		if v, err := tt.s.Load32(tt.where); v != tt.v || err != nil {
			t.Errorf("the device finds %#x at %#x, %v; the guest stored %#x", v, tt.where, err, tt.v)
		}
		if err := tt.s.Store32(tt.where, ^tt.v); err != nil {
			t.Error(err)
		}
		if got, want := q.do("readl %#x", tt.addr), fmt.Sprintf("0x%016x", ^tt.v); got != want {
			t.Errorf("the guest reads %s at %#x, want %s", got, tt.addr, want)
		}
	}
	if n := srv.Stats().Messages - messages; n != 0 {
		t.Errorf("%d messages for accesses to areas: %q", n, dev.Calls())
	}
	// Between the areas the device is asked.
	q.do("writel %#x 1", bar1+0x1010)
	q.do("readl %#x", bar1+0x3010)
	if got, want := dev.Calls(), []string{"write 1 0x1010 01000000", "read 1 0x3010 4"}; !slices.Equal(got, want) {
		t.Errorf("device saw %q, want %q", got, want)
	}
	// With an area, no store is posted.
	if st := srv.Stats(); st.PostedWrites != 0 || st.Errors != 0 || st.NoReplyFailed != 0 {
		t.Errorf("stats %+v", st)
	}
	q.do("outb 0xcf9 0x6")
	waitFor(t, "the reset", func() bool { return slices.Contains(dev.Calls(), "reset") })
	if said := stop(); said != "" {
		t.Errorf("QEMU says: %s", said)
	}
	<-dev.Gone
}
