// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"

	"toebox/firmware/engine"
)

// wire is a port whose other side is the test.
type wire struct {
	mtu     int
	mu      sync.Mutex
	receive func([]engine.Frame)
	sent    []engine.Frame // in one piece each
	took    int            // frames that Transmit still takes; below 0: all
}

func newWire() *wire { return &wire{mtu: 1500, took: -1} }

func (w *wire) MTU() int { return w.mtu }

func (w *wire) Attach(receive func([]engine.Frame)) {
	w.mu.Lock()
	w.receive = receive
	w.mu.Unlock()
}

func (w *wire) Transmit(frames []engine.Frame) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range frames {
		if w.took == 0 {
			return i
		}
		w.took--
		f := frames[i]
		var b []byte
		for _, p := range f.Data {
			b = append(b, p...)
		}
		f.Data = [][]byte{b}
		w.sent = append(w.sent, f)
	}
	return len(frames)
}

func (w *wire) Close() error { return nil }

// deliver lets a frame arrive, in pieces of the given size.
func (w *wire) deliver(f engine.Frame, piece int) {
	w.mu.Lock()
	receive := w.receive
	w.mu.Unlock()
	var pieces [][]byte
	for _, b := range f.Data {
		for len(b) > piece {
			pieces = append(pieces, b[:piece])
			b = b[piece:]
		}
		pieces = append(pieces, b)
	}
	f.Data = pieces
	receive([]engine.Frame{f})
}

// take returns what was sent since the last time.
func (w *wire) take() []engine.Frame {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.sent
	w.sent = nil
	return s
}

// wait takes until cond likes one of the frames.
func (w *wire) wait(t *testing.T, what string, cond func(engine.Frame) bool) engine.Frame {
	t.Helper()
	limit := newLimit()
	for {
		for _, f := range w.take() {
			if cond(f) {
				return f
			}
		}
		if limit() {
			t.Fatalf("no frame: %s", what)
		}
		yield()
	}
}

func onWire(t *testing.T) (*wire, engine.Engine) {
	t.Helper()
	w := newWire()
	e, err := engine.New(engine.Config{Port: w, MAC: macs[0], Addresses: nets[0]})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return w, e
}

func frame(b []byte) engine.Frame { return engine.Frame{Data: [][]byte{b}} }

// arpReply is what 198.18.0.2 at 02:00:00:00:00:02 tells us.
func arpReply() []byte {
	return []byte{
		2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x06, // Ethernet: to us, ARP
		0, 1, 0x08, 0x00, 6, 4, 0, 2, // Ethernet, IPv4, reply
		2, 0, 0, 0, 0, 2, 198, 18, 0, 2, // sender
		2, 0, 0, 0, 0, 1, 198, 18, 0, 1, // target
	}
}

// arpRequest asks us for 198.18.0.1 and so says where 198.18.0.2 is.
func arpRequest() []byte {
	b := arpReply()
	copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	b[21] = 1
	return b
}

// ping is an echo request from 198.18.0.2 with the given payload, all
// checksums right.
func ping(payload int) []byte {
	b := make([]byte, 14+20+8+payload)
	copy(b, []byte{
		2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, // Ethernet: to us, IPv4
		0x45, 0, 0, 0, 0, 1, 0, 0, 64, 1, 0, 0, 198, 18, 0, 2, 198, 18, 0, 1, // IPv4: ICMP
		8, 0, 0, 0, 0, 7, 0, 1, // echo request, id 7, sequence 1
	})
	binary.BigEndian.PutUint16(b[16:], uint16(28+payload))
	for i := range payload {
		b[42+i] = byte(i)
	}
	binary.BigEndian.PutUint16(b[24:], checksum(b[14:34]))
	binary.BigEndian.PutUint16(b[36:], checksum(b[34:]))
	return b
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := range b {
		sum += uint32(b[i]) << (8 * (1 - i%2))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func isPong(f engine.Frame) bool {
	b := f.Data[0]
	return len(b) >= 42 && b[12] == 0x08 && b[13] == 0 && b[23] == 1 && b[34] == 0
}

func TestLinkAnswers(t *testing.T) {
	w, _ := onWire(t)
	w.deliver(frame(arpRequest()), 1000)
	f := w.wait(t, "ARP reply", func(f engine.Frame) bool { return f.Data[0][13] == 0x06 })
	want := []byte{
		2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x06,
		0, 1, 0x08, 0x00, 6, 4, 0, 2,
		2, 0, 0, 0, 0, 1, 198, 18, 0, 1,
		2, 0, 0, 0, 0, 2, 198, 18, 0, 2,
	}
	if string(f.Data[0]) != string(want) {
		t.Errorf("answer % x, want % x", f.Data[0], want)
	}
	// Frames in any pieces are the same.
	for _, piece := range []int{1, 7, 14, 33, 4096} {
		for _, payload := range []int{0, 1, 1400} {
			w.deliver(frame(ping(payload)), piece)
			pong := w.wait(t, "echo reply", isPong).Data[0]
			req := ping(payload)
			if len(pong) != len(req) || string(pong[38:]) != string(req[38:]) || string(pong[:12]) != "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01" {
				t.Errorf("pieces of %d, payload %d: % x", piece, payload, pong)
			}
		}
	}
}

func TestHostileFrames(t *testing.T) {
	change := func(b []byte, f func([]byte)) []byte { f(b); return b }
	tests := []struct {
		name  string
		frame engine.Frame
		count func(engine.Stats) uint64
	}{
		{"nothing", engine.Frame{}, func(s engine.Stats) uint64 { return s.FramesShort }},
		{"no bytes", frame(nil), func(s engine.Stats) uint64 { return s.FramesShort }},
		{"cut in the header", frame(ping(0)[:13]), func(s engine.Stats) uint64 { return s.FramesShort }},
		{"header only", frame(ping(0)[:14]), func(s engine.Stats) uint64 { return s.FramesShort }},
		{"huge", frame(make([]byte, 14+40+65536)), func(s engine.Stats) uint64 { return s.FramesOversize }},
		{"for another", frame(change(ping(0), func(b []byte) { b[5] = 9 })), func(s engine.Stats) uint64 { return s.FramesOtherAddress }},
		{"another type", frame(change(ping(0), func(b []byte) { b[12] = 0x88 })), func(s engine.Stats) uint64 { return s.FramesOtherType }},
		{"VLAN", frame(change(ping(0), func(b []byte) { b[12], b[13] = 0x81, 0 })), func(s engine.Stats) uint64 { return s.FramesOtherType }},
	}
	w, e := onWire(t)
	w.deliver(frame(arpRequest()), 100)
	for _, tt := range tests {
		before := e.Stats()
		w.deliver(tt.frame, 1<<20)
		after := e.Stats()
		if tt.count(after) != tt.count(before)+1 || after.FramesDropped != before.FramesDropped+1 || after.FramesReceived != before.FramesReceived+1 {
			t.Errorf("%s: counters from %+v to %+v", tt.name, before, after)
		}
	}
	// These are for the stack to refuse; it must not answer.
	for name, b := range map[string][]byte{
		"cut in the IP header": ping(0)[:20],
		"cut in the payload":   ping(100)[:60],
		"IP checksum":          change(ping(0), func(b []byte) { b[24] ^= 1 }),
		"header length":        change(ping(0), func(b []byte) { b[14] = 0x4f }),
		"no header length":     change(ping(0), func(b []byte) { b[14] = 0x40 }),
		"version":              change(ping(0), func(b []byte) { b[14] = 0x65 }),
		"ICMP checksum":        change(ping(0), func(b []byte) { b[36] ^= 1 }),
		"cut ARP":              arpReply()[:30],
		"largest of zeros":     append(ping(0)[:14], make([]byte, 65535)...),
	} {
		for _, vouched := range []bool{false, true} {
			f := frame(b)
			f.ChecksumValid = vouched
			if vouched && name == "ICMP checksum" {
				continue
			}
			w.deliver(f, 1<<20)
			for _, s := range w.take() {
				if isPong(s) {
					t.Errorf("%s (vouched for: %v): answered", name, vouched)
				}
			}
		}
	}
	w.deliver(frame(ping(3)), 1<<20)
	w.wait(t, "the answer after all that", isPong)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// A transport checksum is looked at unless the port vouches for it.
func TestChecksums(t *testing.T) {
	w, e := onWire(t)
	w.deliver(frame(arpRequest()), 100)
	syn := []byte{
		2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00,
		0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 198, 18, 0, 2, 198, 18, 0, 1,
		0x30, 0x39, 0, 99, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0, // SYN to port 99, no checksum
	}
	binary.BigEndian.PutUint16(syn[24:], checksum(syn[14:34]))
	isReset := func(f engine.Frame) bool { flags, _, ok := segment(f.Data[0]); return ok && flags&flagRST != 0 }
	for _, f := range []engine.Frame{{ChecksumValid: true}, {NeedsChecksum: true}} {
		f.Data = [][]byte{syn}
		w.deliver(f, 100)
		rst := w.wait(t, "RST", isReset)
		// No segmentation type, so it leaves with a complete checksum.
		if rst.NeedsChecksum || rst.GSO != engine.GSONone {
			t.Errorf("RST leaves with %+v", rst)
		}
		if k := synOptions(t, rst.Data[0]); len(k) != 0 {
			t.Errorf("options % x", k)
		}
	}
	// Behind it a ping, whose answer comes after any other.
	w.deliver(frame(syn), 100)
	w.deliver(frame(ping(0)), 100)
	w.wait(t, "echo reply", func(f engine.Frame) bool {
		if isReset(f) {
			t.Error("a segment with a bad checksum was answered")
		}
		return isPong(f)
	})
	if s := e.Stats(); s.ResetsSent != 2 {
		t.Errorf("%d resets sent", s.ResetsSent)
	}
}

// What the port does not take is counted and lost.
func TestPortRefuses(t *testing.T) {
	w, e := onWire(t)
	w.deliver(frame(arpRequest()), 100)
	w.mu.Lock()
	w.took = 0
	w.mu.Unlock()
	before := e.Stats()
	w.deliver(frame(ping(10)), 100)
	limit := newLimit()
	for e.Stats().FramesRefused == before.FramesRefused {
		if limit() {
			t.Fatal("not counted")
		}
		yield()
	}
	after := e.Stats()
	if after.FramesSent != before.FramesSent || after.FrameBytesSent != before.FrameBytesSent || after.FramesDropped != before.FramesDropped+after.FramesRefused {
		t.Errorf("from %+v to %+v", before, after)
	}
}

// A bulk write leaves as one frame whose segmentation is described.
func TestSegmentationOffload(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		var mu sync.Mutex
		var big []engine.Frame
		most := 0
		a, b := twoEnginesOn(t, func(f []engine.Frame) {
			mu.Lock()
			defer mu.Unlock()
			for i := range f {
				if f[i].Len() > 2000 {
					big = append(big, f[i])
					most = max(most, f[i].Len())
				}
			}
		})
		ip := a.v4
		if v6 {
			ip = a.v6
		}
		l := listen(t, a, v6, 80, 1)
		c := connect(t, b, v6, netip.AddrPortFrom(ip, 80))
		s := accept(t, l)
		go send(t, c, make([]byte, 4<<20))
		receive(t, s, 4<<20)
		mu.Lock()
		if len(big) == 0 {
			t.Fatal("no frame larger than the MTU")
		}
		for _, f := range big {
			want := engine.Frame{Data: f.Data, GSO: engine.GSOTCPv4, GSOSize: f.GSOSize, HeaderLen: 66, NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16}
			mss := uint16(1448)
			if v6 {
				want.GSO, want.HeaderLen, want.ChecksumStart, mss = engine.GSOTCPv6, 86, 54, 1428
			}
			if f.GSO != want.GSO || f.HeaderLen != want.HeaderLen || !f.NeedsChecksum || f.ChecksumStart != want.ChecksumStart || f.ChecksumOffset != want.ChecksumOffset || f.GSOSize > mss || f.GSOSize < mss-40 {
				t.Fatalf("%+v, want %+v, segments of %d", f, want, mss)
			}
		}
		mu.Unlock()
		if most < 60000 || most > 65535+14 {
			t.Errorf("largest frame %d bytes", most)
		}
	}
}

func FuzzLinkReceive(f *testing.F) {
	f.Add(ping(0), uint8(0), uint16(14))
	f.Add(ping(100), uint8(1), uint16(3))
	f.Add(arpReply(), uint8(2), uint16(20))
	f.Add([]byte{}, uint8(0), uint16(1))
	// A neighbour solicitation, a fragment, a SYN to the listener.
	ns := append([]byte{0x33, 0x33, 0xff, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255}, make([]byte, 56)...)
	f.Add(ns, uint8(1), uint16(64))
	fragment := ping(64)
	fragment[20] = 0x20
	f.Add(fragment, uint8(1), uint16(64))
	syn := append(ping(0)[:34], 0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0)
	syn[23] = 6
	f.Add(syn, uint8(1), uint16(64))
	w := newWire()
	e, err := engine.New(engine.Config{Port: w, MAC: macs[0], Addresses: nets[0]})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = e.Close() })
	l := listen(f, side{Engine: e}, false, 80, 16)
	f.Fuzz(func(t *testing.T, b []byte, flags uint8, piece uint16) {
		if flags&4 != 0 && len(b) >= 34 && b[14] == 0x45 {
			b = append([]byte(nil), b...)
			b[24], b[25] = 0, 0
			binary.BigEndian.PutUint16(b[24:], checksum(b[14:34]))
		}
		fr := frame(b)
		fr.ChecksumValid = flags&1 != 0
		fr.NeedsChecksum = flags&2 != 0
		w.deliver(fr, int(piece)+1)
		w.take()
		if ep, err := l.Accept(func(engine.Endpoint) engine.Sink { return newEvents() }); err == nil {
			ep.Abort()
		}
	})
}
