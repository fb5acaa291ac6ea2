// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/firmware/engine"
)

// newTapPair is a tap port whose kernel is the test: a socket that keeps the
// bounds of messages, as a tap device does.
func newTapPair(t *testing.T, tso bool) (*Tap, *os.File) {
	t.Helper()
	checkLeaks(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	wire := os.NewFile(uintptr(fds[1]), "wire")
	t.Cleanup(func() { wire.Close() })
	wire.SetDeadline(time.Now().Add(limit))
	p, err := newTap(fds[0], "tap", 1500, tso)
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
	p, wire := newTapPair(t, false)
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
	p, wire := newTapPair(t, false)
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

// TestTapOffloads: what is left to do goes both ways as the header says it.
func TestTapOffloads(t *testing.T) {
	p, wire := newTapPair(t, true)
	four, six := gsoFrame(t, false), gsoFrame(t, true)
	sum := engine.Frame{Data: [][]byte{make([]byte, 14), make([]byte, 40)}, NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 6}
	many := gsoFrame(t, false) // in more pieces than one write takes
	rest := many.Data[1]
	many.Data = many.Data[:1]
	for ; len(rest) > 0; rest = rest[2:] {
		many.Data = append(many.Data, rest[:2])
	}
	words := func(flags, gso byte, fields ...uint16) []byte {
		b := []byte{flags, gso, 0, 0, 0, 0, 0, 0, 0, 0}
		for i, f := range fields {
			binary.NativeEndian.PutUint16(b[2+2*i:], f)
		}
		return b
	}
	if k := p.Transmit([]engine.Frame{four, six, sum, many}); k != 4 {
		t.Errorf("took %d", k)
	}
	want := [][]byte{
		append(words(1, 1, 58, 1000, 34, 16), bytes.Join(four.Data, nil)...), // NEEDS_CSUM, GSO_TCPV4
		append(words(1, 4, 78, 1000, 54, 16), bytes.Join(six.Data, nil)...),  // NEEDS_CSUM, GSO_TCPV6
		append(words(1, 0, 0, 0, 34, 6), bytes.Join(sum.Data, nil)...),       // NEEDS_CSUM
	}
	for _, b := range split(&many) {
		want = append(want, append(words(0, 0), b...))
	}
	b := make([]byte, 1<<16)
	for i, m := range want {
		n, err := wire.Read(b)
		if err != nil || !bytes.Equal(b[:n], m) {
			t.Errorf("message %d: %x, %v", i, b[:n], err)
		}
	}

	// And back. The length of headers in the kernel's is a hint.
	got := make(chan engine.Frame, 16)
	p.Attach(func(frames []engine.Frame) {
		for _, f := range frames {
			f.Data = [][]byte{bytes.Join(f.Data, nil)}
			got <- f
		}
	})
	whole4, whole6 := bytes.Join(four.Data, nil), bytes.Join(six.Data, nil)
	udp := bytes.Clone(whole4)
	udp[23] = 17
	options := bytes.Clone(whole4)
	options[46] = 0xf0 // TCP's headers are longer than the frame
	large := append(bytes.Clone(whole4), make([]byte, 14+65535-len(whole4))...)
	for _, m := range [][]byte{
		append(words(1, 1, 700, 1000, 34, 16), whole4...),
		append(words(3, 4, 0, 1000, 54, 16), whole6...),
		append(words(1, 1, 58, 1448, 34, 16), large...),
		append(words(1, 0, 0, 0, 34, 16), whole4[:1514]...),
		append(words(1, 0, 0, 0, 1512-16, 16), whole4[:1514]...),  // the sum's place is the end
		append(words(1, 0, 0, 0, 1513-16, 16), whole4[:1514]...),  // beyond it
		append(words(1, 0, 0, 0, 65535, 65535), whole4[:1514]...), // and that overflows
		append(words(1, 0, 0, 0, 13, 16), whole4[:1514]...),       // in the Ethernet header
		append(words(1, 1, 58, 0, 34, 16), whole4...),             // segments of nothing
		append(words(1, 1, 58, 1000, 34, 16), whole6...),          // not IPv4
		append(words(1, 4, 78, 1000, 54, 16), whole4...),          // not IPv6
		append(words(1, 1, 58, 1000, 34, 16), udp...),             // not TCP
		append(words(1, 1, 58, 1000, 34, 16), whole4[:57]...),     // not whole headers
		append(words(1, 1, 58, 1000, 34, 16), options[:70]...),    // neither
		append(words(1, 3, 58, 1000, 34, 6), udp...),              // GSO_UDP, which nobody asked for
		append(words(1, 0x81, 58, 1000, 34, 16), whole4...),       // nor for GSO_ECN
		append(words(0, 0), append(large, 0, 0, 0, 0, 0, 0)...),   // longer than can be
		append(words(0, 0), whole4[:1519]...),                     // longer than the MTU
		append(words(0, 0), whole4[:60]...),                       // the last
	} {
		if _, err := wire.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	for i, f := range []engine.Frame{
		{Data: [][]byte{whole4}, GSO: engine.GSOTCPv4, GSOSize: 1000, HeaderLen: 58, NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16},
		{Data: [][]byte{whole6}, GSO: engine.GSOTCPv6, GSOSize: 1000, HeaderLen: 78, NeedsChecksum: true, ChecksumStart: 54, ChecksumOffset: 16, ChecksumValid: true},
		{Data: [][]byte{large}, GSO: engine.GSOTCPv4, GSOSize: 1448, HeaderLen: 58, NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16},
		{Data: [][]byte{whole4[:1514]}, NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16},
		{Data: [][]byte{whole4[:1514]}, NeedsChecksum: true, ChecksumStart: 1496, ChecksumOffset: 16},
		{Data: [][]byte{whole4[:60]}},
	} {
		select {
		case g := <-got:
			if !reflect.DeepEqual(g, f) {
				g.Data, f.Data = nil, nil
				t.Errorf("frame %d: %+v, want %+v", i, g, f)
			}
		case <-time.After(limit):
			t.Fatalf("frame %d does not come: %+v", i, p.Stats())
		}
	}
	if st := p.Stats(); st != (TapStats{FramesFromAdapter: 6, FramesToAdapter: 6, DroppedOffload: 11, DroppedLong: 2}) {
		t.Errorf("%+v", st)
	}
}

// TestTapOffloadRefused: a kernel that has none does without.
func TestTapOffloadRefused(t *testing.T) {
	for name, c := range map[string]struct {
		refuses int // how many calls
		tso     bool
		bits    []int
	}{
		"takes":         {0, true, []int{7}},     // TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6
		"takes none":    {1, false, []int{7, 0}}, // and is told so
		"takes no call": {2, false, []int{7, 0}},
	} {
		var bits []int
		tso, err := offload(func(b int) error {
			if bits = append(bits, b); len(bits) <= c.refuses {
				return unix.EINVAL
			}
			return nil
		})
		if tso != c.tso || (err != nil) != (c.refuses == 2) || !slices.Equal(bits, c.bits) {
			t.Errorf("%s: %v, %v, asked for %v", name, tso, err, bits)
		}
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
			p, wire := newTapPair(t, false)
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
		if _, err := newTap(fd, "null", mtu, true); err == nil {
			t.Errorf("mtu %d accepted", mtu)
		}
	}
}
