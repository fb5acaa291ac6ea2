// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"toebox/images/qtest"
	"toebox/images/toolchain/toolchaintest"
	"toebox/vfio-user/edu"
	"toebox/vfio-user/keeper"
)

const (
	kills     = 100
	transfers = 10_000
	limit     = 5 * time.Minute // of a hang
	memory    = 64 << 20
	bar       = 0xe0000000

	asServer = "KEEPER_TEST_SERVER" // in the environment: be the device server
)

func TestMain(m *testing.M) {
	switch os.Getenv(asServer) {
	case "":
	case asAdapter:
		serveAdapter()
		return
	default:
		serve()
		return
	}
	os.Exit(m.Run())
}

// serve is the device server.
func serve() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err == nil {
		var dev *edu.Device
		if dev, err = edu.New(edu.Config{}); err == nil {
			err = dev.Server().Serve(ctx, l.(*net.UnixListener))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// rig is a machine with the device in it.
type rig struct {
	t     *testing.T
	m     *qtest.Machine
	ready chan keeper.Event
	bdf   qtest.BDF
	seq   uint32
	acked map[uint32]bool // what was acknowledged, by place
}

func newRig(t *testing.T) *rig {
	qemu := toolchaintest.QEMU(t)
	dir, err := os.MkdirTemp("", "keeper") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, ready: make(chan keeper.Event, 4*kills), bdf: qtest.NewBDF(0, 6, 0), acked: map[uint32]bool{}}
	k, err := keeper.New(keeper.Config{
		Command: func(l keeper.Launch) *exec.Cmd {
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), asServer+"=1")
			cmd.ExtraFiles = []*os.File{l.Listener}
			return cmd
		},
		Event: func(e keeper.Event) {
			if e.Kind == keeper.EventReady {
				r.ready <- e
			}
		},
		BackOff: time.Millisecond, MaxBackOff: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "device")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Serve(ctx, l) }()
	t.Cleanup(func() {
		t.Logf("%+v", k.Stats())
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		l.Close()
	})
	r.m, err = qtest.Start(t.Context(), qtest.Config{
		Command: qemu.Command, Dir: dir, Memory: memory,
		Args: []string{"-device", fmt.Sprintf(`{"driver":"vfio-user-pci","addr":"6.0","socket":{"type":"unix","path":%q}}`, path)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.m.Close() })
	r.place()
	return r
}

// place does what firmware and driver do after a reset.
func (r *rig) place() {
	r.t.Helper()
	for _, w := range []struct {
		at   uint8
		size int
		v    uint32
	}{{0x10, 4, bar}, {0x44, 4, 0x100000}, {0x48, 4, 0}, {0x4c, 2, 0x4041}, {0x42, 2, 1}, {0x04, 2, 6}} {
		r.check(r.m.WriteConfig(r.bdf, w.at, w.size, w.v))
	}
}

func (r *rig) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%v; QEMU says: %s", err, r.m.Log())
	}
}

func (r *rig) wait() keeper.Event {
	r.t.Helper()
	select {
	case e := <-r.ready:
		return e
	case <-time.After(limit):
		r.t.Fatal("no server gets ready")
		panic("not reached")
	}
}

const (
	areaAt = 4 << 20 // guest memory that the transfers go to
	areas  = 32 << 20
	piece  = 256  // bytes of a transfer
	buffer = 4096 // of the device
)

// round has the device fill its buffer from guest memory and put it back there
// in pieces, each at a place of its own. Each transfer counts that the device
// acknowledges before it is restarted.
func (r *rig) round() (acknowledged int) {
	r.seq++
	seq := r.seq
	pattern := fill(seq)
	_, err := r.m.RAM.WriteAt(pattern, areaAt-buffer)
	r.check(err)
	r.check(r.m.Write32(bar+0x04, seq)) // liveness: a new device knows nothing of it
	r.transfer(areaAt-buffer, 0x40000, buffer, 1)
	if !r.lives(seq) {
		return 0
	}
	acknowledged++
	for i := uint32(0); i < buffer/piece; i++ {
		slot := (seq*(buffer/piece) + i) % (areas / piece)
		delete(r.acked, slot)
		r.transfer(0x40000+uint64(i)*piece, areaAt+uint64(slot)*piece, piece, 3)
		if !r.lives(seq) {
			return acknowledged
		}
		acknowledged++
		r.acked[slot] = true
		r.compare(slot, pattern[i*piece:][:piece])
	}
	return acknowledged
}

func fill(seq uint32) []byte {
	b := make([]byte, buffer)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint32(b[i:], seq)
		binary.LittleEndian.PutUint32(b[i+4:], uint32(i)*2654435761)
	}
	return b
}

// compare fails the test unless a place in guest memory holds want.
func (r *rig) compare(slot uint32, want []byte) {
	r.t.Helper()
	var got [piece]byte
	_, err := r.m.RAM.ReadAt(got[:], areaAt+int64(slot)*piece)
	r.check(err)
	if !bytes.Equal(got[:], want) {
		r.t.Fatalf("slot %d was acknowledged; memory holds %.16x, want %.16x", slot, got[:], want)
	}
}

func (r *rig) transfer(source, dest, count, command uint64) {
	r.t.Helper()
	for i, v := range [...]uint64{source, dest, count, command} {
		r.check(r.m.Write64(bar+0x80+uint64(i)*8, v))
	}
	for deadline := time.Now().Add(limit); ; {
		v, err := r.m.Read64(bar + 0x98)
		r.check(err)
		if v&1 == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal("a transfer does not end")
		}
	}
}

// lives reports whether the device is still the one that was told seq.
func (r *rig) lives(seq uint32) bool {
	v, err := r.m.Read32(bar + 0x04)
	r.check(err)
	return v == ^seq
}

// TestHundredKills is the whole of it.
func TestHundredKills(t *testing.T) {
	began := time.Now()
	seed := rand.Uint64()
	if s := os.Getenv("TOEBOX_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			t.Fatalf("TOEBOX_SEED: %v", err)
		}
		seed = v
	}
	t.Logf("repeat with TOEBOX_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	r := newRig(t)
	total := 0
	var longest time.Duration
	for kill := range kills {
		e := r.wait()
		for progress := 0; progress == 0 || total < (kill+1)*transfers/kills; {
			n := r.round()
			progress += n
			total += n
		}
		at := time.Now()
		after := time.Duration(rng.IntN(3000)) * time.Microsecond
		timer := time.AfterFunc(after, func() { syscall.Kill(e.PID, syscall.SIGKILL) })
		for len(r.ready) == 0 {
			total += r.round()
			if time.Since(at) > limit {
				t.Fatal("no server follows the one that was killed")
			}
		}
		timer.Stop()
		longest = max(longest, time.Since(at)-after)
	}
	r.wait()
	if r.round() == 0 {
		t.Error("no progress after the last kill")
	}
	if total < transfers {
		t.Errorf("%d transfers were acknowledged", total)
	}
	// What was acknowledged at any time is still there, unless overwritten.
	for slot := range r.acked {
		seq := r.writer(slot)
		r.compare(slot, fill(seq)[slot%(buffer/piece)*piece:][:piece])
	}
	if log := r.m.Log(); log != "" {
		t.Errorf("QEMU says: %s", log)
	}
	t.Logf("%d transfers over %d kills in %v, all in memory; at most %v from a kill to a round after it", total, kills, time.Since(began), longest)
}

// writer returns which round wrote a slot last.
func (r *rig) writer(slot uint32) uint32 {
	const rounds = areas / buffer // until the slots come round
	first := slot / (buffer / piece)
	return first + (r.seq-first)/rounds*rounds
}

// TestResets resets the machine while the server is killed: QEMU resets the
// device and maps all memory anew.
func TestResets(t *testing.T) {
	const resets = 20
	r := newRig(t)
	for i := range resets {
		e := r.wait()
		r.progress()
		timer := time.AfterFunc(time.Duration(i)*200*time.Microsecond, func() { syscall.Kill(e.PID, syscall.SIGKILL) })
		r.check(r.m.Out8(0xcf9, 6))
		for deadline := time.Now().Add(limit); ; {
			v, err := r.m.ReadConfig(r.bdf, 0x10, 4)
			r.check(err)
			if v == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("no reset")
			}
		}
		r.place()
		for len(r.ready) == 0 {
			r.round()
		}
		timer.Stop()
	}
	r.wait()
	r.progress()
	if log := r.m.Log(); log != "" {
		t.Errorf("QEMU says: %s", log)
	}
}

// progress has the device do something.
func (r *rig) progress() {
	r.t.Helper()
	for deadline := time.Now().Add(limit); r.round() == 0; {
		if time.Now().After(deadline) {
			r.t.Fatal("no progress")
		}
	}
}
