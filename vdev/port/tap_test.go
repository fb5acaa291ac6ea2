// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/firmware/engine"
)

// newTapPair is a tap port whose kernel is the test: a socket that keeps the
// bounds of messages, as a tap device does.
func newTapPair(t *testing.T) (*Tap, *os.File) {
	t.Helper()
	checkLeaks(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	wire := os.NewFile(uintptr(fds[1]), "wire")
	t.Cleanup(func() { wire.Close() })
	wire.SetDeadline(time.Now().Add(limit))
	p, err := newTap(fds[0], "tap", 1500)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, wire
}

// TestTapTransmit: each frame is one message behind a header of zeros; a frame
// that stands for many is cut.
func TestTapTransmit(t *testing.T) {
	p, wire := newTapPair(t)
	f := gsoFrame(t, false)
	small := engine.Frame{Data: [][]byte{make([]byte, 10), {1, 2, 3, 4, 5}}}
	short, long := engine.Frame{Data: [][]byte{make([]byte, 13)}}, engine.Frame{Data: [][]byte{make([]byte, streamFrame+1)}}
	if k := p.Transmit([]engine.Frame{small, short, long, f}); k != 2 {
		t.Errorf("took %d", k)
	}
	want := append([][]byte{append(make([]byte, 10), 1, 2, 3, 4, 5)}, split(&f)...)
	b := make([]byte, 4096)
	for i, frame := range want {
		n, err := wire.Read(b)
		if err != nil || !bytes.Equal(b[:n], append(make([]byte, 10), frame...)) {
			t.Errorf("message %d: %x, %v", i, b[:n], err)
		}
	}
	if st := p.Stats(); st != (TapStats{FramesFromAdapter: 4, DroppedShort: 1, DroppedLong: 1}) {
		t.Errorf("%+v", st)
	}
	// A kernel that takes no more costs frames, not time.
	taken := 0
	for range 10_000 {
		taken += p.Transmit([]engine.Frame{{Data: [][]byte{make([]byte, 1514)}}})
	}
	if st := p.Stats(); taken == 10_000 || st.DroppedRefused != uint64(10_000-taken) {
		t.Errorf("took %d, %+v", taken, st)
	}
}

// TestTapReceive: what the kernel says in front of frames, and frames that are
// none.
func TestTapReceive(t *testing.T) {
	p, wire := newTapPair(t)
	message := func(flags, gso byte, n int, mark byte) []byte {
		b := bytes.Repeat([]byte{mark}, 10+n)
		copy(b, []byte{flags, gso, 0, 0, 0, 0, 0, 0, 0, 0})
		return b
	}
	send := func(b []byte) {
		t.Helper()
		if _, err := wire.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	send(message(0, 0, 14, 1))
	eventually(t, "a frame for nobody is counted", func() bool { return p.Stats().DroppedNotAttached == 1 })
	type frame struct {
		n     int
		mark  byte
		valid bool
	}
	var mu sync.Mutex
	var got []frame
	p.Attach(func(frames []engine.Frame) {
		mu.Lock()
		defer mu.Unlock()
		for i := range frames {
			b := bytes.Join(frames[i].Data, nil)
			got = append(got, frame{len(b), b[0], frames[i].ChecksumValid})
			if !bytes.Equal(b, bytes.Repeat(b[:1], len(b))) {
				t.Errorf("frame %x", b)
			}
		}
	})
	for _, m := range [][]byte{
		message(0, 0, 14, 2),     // the shortest
		message(2, 0, 60, 3),     // DATA_VALID
		message(1, 0, 60, 4),     // NEEDS_CSUM
		message(0, 1, 60, 5),     // GSO_TCPV4
		message(0, 0x80, 60, 6),  // GSO_ECN
		message(0, 0, 13, 7),     // no whole header
		{0},                      // no whole virtio_net_hdr
		message(0, 0, 1518, 8),   // the longest, with a tag
		message(0, 0, 1519, 9),   // longer
		message(0, 0, 60000, 10), // and much longer
	} {
		send(m)
	}
	want := []frame{{14, 2, false}, {60, 3, true}, {1518, 8, false}}
	for i := range 3 * frameBatch { // more than one batch
		send(message(0, 0, 20+i, byte(11+i%200)))
		want = append(want, frame{20 + i, byte(11 + i%200), false})
	}
	eventually(t, "all arrive", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) >= len(want) })
	p.Attach(nil)
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("frame %d: %v, want %v", i, got[i], want[i])
		}
	}
	if st := p.Stats(); st != (TapStats{
		FramesToAdapter: uint64(len(want)), DroppedNotAttached: 1, DroppedOffload: 3, DroppedShort: 2, DroppedLong: 2,
	}) {
		t.Errorf("%+v", st)
	}
}

// TestTapEnds: the device goes away, or the port is closed under a reader that
// waits.
func TestTapEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*Tap, *os.File)
		want error
	}{
		"device": {func(_ *Tap, wire *os.File) { wire.Close() }, io.EOF},
		"port":   {func(p *Tap, _ *os.File) { p.Close() }, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			p, wire := newTapPair(t)
			if p.Err() != nil || p.MTU() != 1500 {
				t.Errorf("at first: %v, mtu %d", p.Err(), p.MTU())
			}
			c.end(p, wire)
			select {
			case <-p.Done():
			case <-time.After(limit):
				t.Fatal("goes on")
			}
			if err := p.Err(); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if k := p.Transmit([]engine.Frame{{Data: [][]byte{make([]byte, 14)}}}); k != 0 || p.Stats().DroppedRefused != 1 {
				t.Error("took a frame after the end")
			}
		})
	}
}

// TestTapRefused: files and names that are none of a tap device, and a bad MTU.
func TestTapRefused(t *testing.T) {
	checkLeaks(t)
	for _, name := range []string{"", "0123456789abcdef"} {
		if f, err := OpenTap(name); err == nil {
			f.Close()
			t.Errorf("opened %q", name)
		}
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewTap(f, 1500); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("%s: %v", os.DevNull, err)
	}
	for _, mtu := range []int{-1, 0, 1279, 65536} {
		fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newTap(fd, "null", mtu); err == nil {
			t.Errorf("mtu %d accepted", mtu)
		}
	}
}
