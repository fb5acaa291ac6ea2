// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"toebox/firmware/engine"
)

// stubPort is a port that keeps what it is given.
type stubPort struct {
	receive func([]engine.Frame)
	sent    int
	closed  bool
}

func (p *stubPort) MTU() int                      { return 1234 }
func (p *stubPort) Attach(r func([]engine.Frame)) { p.receive = r }
func (p *stubPort) Transmit(f []engine.Frame) int { p.sent += len(f); return len(f) }
func (p *stubPort) Close() error                  { p.closed = true; return nil }

// syncBuffer is a writer that may be looked at while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes())
}

// fixedClock ticks a second at each look, from 1.000000007 s on.
func fixedClock() func() time.Time {
	t := time.Unix(0, 7)
	return func() time.Time { t = t.Add(time.Second); return t }
}

func TestCaptureBytes(t *testing.T) {
	checkLeaks(t)
	var out syncBuffer
	inner := &stubPort{}
	c := Capture(inner, &out, CaptureOptions{
		Name: "en0", Hardware: "hw", OS: "os", Application: "app", SnapLen: 5, Now: fixedClock(),
		Comment: func(d Direction, f *engine.Frame) string {
			if d == Inbound {
				return "why"
			}
			return ""
		},
	})
	if c.MTU() != 1234 {
		t.Error("MTU")
	}
	received := 0
	c.Attach(func(f []engine.Frame) { received += len(f) })
	if k := c.Transmit([]engine.Frame{{Data: [][]byte{{1, 2}, {3, 4, 5, 6}}}}); k != 1 {
		t.Error("Transmit:", k)
	}
	inner.receive([]engine.Frame{{Data: [][]byte{{7, 8, 9}}}})
	if received != 1 || inner.sent != 1 {
		t.Errorf("received %d, sent %d", received, inner.sent)
	}
	// Nothing more has to happen for it to reach the file.
	eventually(t, "it is written", func() bool { return len(out.Bytes()) >= 204 })
	c.Attach(nil)
	if inner.receive != nil {
		t.Error("not detached")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil || !inner.closed {
		t.Error(err)
	}
	want := hexBytes(t, `
0a0d0d0a 38000000 4d3c2b1a 0100 0000 ffffffffffffffff # section header, 1.0, length unknown
0200 0200 68770000 0300 0200 6f730000 0400 0300 61707000 # hw, os, app
0000 0000 38000000
01000000 28000000 0100 0000 05000000      # interface: Ethernet, snap length 5
0200 0300 656e3000 0900 0100 09000000     # name, nanoseconds
0000 0000 28000000
06000000 34000000 00000000 00000000 07943577 05000000 06000000 # packet at 2.000000007 s, 5 of 6 bytes
0102030405 000000 0200 0400 02000000      # data, outbound
0000 0000 34000000
06000000 38000000 00000000 00000000 075ed0b2 03000000 03000000 # packet at 3.000000007 s
070809 00 0200 0400 01000000 0100 0300 77687900 # data, inbound, comment
0000 0000 38000000
05000000 4c000000 00000000 00000000 07286bee # statistics at 4.000000007 s
0200 0800 00000000 07ca9a3b               # from 1.000000007 s
0300 0800 00000000 07286bee               # to 4.000000007 s
0400 0800 0200000000000000 0500 0800 0000000000000000 # 2 frames, none missed
0000 0000 4c000000`)
	// The first block type is its own mirror image; the others are little endian.
	if got := out.Bytes(); !bytes.Equal(got, want) {
		t.Errorf("got\n%x, want\n%x", got, want)
	}
}

// stream is the payload of one direction of a connection, by sequence numbers
// relative to its first byte.
type stream struct {
	start uint32 // sequence number of the first byte
	parts []span
}

type span struct{ from, to uint32 }

func (s *stream) add(tcp *layers.TCP) {
	if tcp.SYN {
		s.start = tcp.Seq + 1
	} else if n := uint32(len(tcp.Payload)); n > 0 {
		s.parts = append(s.parts, span{tcp.Seq - s.start, tcp.Seq - s.start + n})
	}
}

// length is how many bytes stand there up to the first hole.
func (s *stream) length() (n uint32) {
	slices.SortFunc(s.parts, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for _, p := range s.parts {
		if p.from > n {
			break
		}
		n = max(n, p.to)
	}
	return n
}

// TestCaptureTraffic records a real transfer of large segments, and decodes
// the file with a reader of another make.
func TestCaptureTraffic(t *testing.T) {
	const size = 1 << 20
	checkLeaks(t)
	n, err := NewNAT(NATConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var out syncBuffer
	c := Capture(n, &out, CaptureOptions{Buffer: 64 << 20})
	t.Cleanup(func() { c.Close() })
	p := newPeer(t, c, n.Lease(), true)
	for _, connect := range []func(testing.TB, *NAT, *peer) (halfCloser, halfCloser){outboundPair, outboundPair6} {
		a, h := connect(t, n, p)
		if err := transfer(a, h, size, 1); err != nil {
			t.Fatal(err)
		}
		if err := transfer(h, a, size, 2); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	var stats pcapgo.NgInterfaceStatistics
	r, err := pcapgo.NewNgReader(bytes.NewReader(out.Bytes()), pcapgo.NgReaderOptions{
		StatisticsCallback: func(_ int, s pcapgo.NgInterfaceStatistics) { stats = s },
	})
	if err != nil {
		t.Fatal(err)
	}
	var count, large, arp int
	flows := map[gopacket.Flow]*stream{}
	var last time.Time
	for {
		b, ci, err := r.ReadPacketData()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		count++
		if ci.CaptureLength != ci.Length || len(b) != ci.Length || ci.Timestamp.Before(last) {
			t.Fatalf("packet %d: %+v", count, ci)
		}
		last = ci.Timestamp
		pkt := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
		if e := pkt.ErrorLayer(); e != nil {
			t.Fatalf("packet %d: %v", count, e.Error())
		}
		if pkt.Layer(layers.LayerTypeARP) != nil {
			arp++
		}
		tcp, ok := pkt.Layer(layers.LayerTypeTCP).(*layers.TCP)
		if !ok {
			continue
		}
		src, dst := pkt.NetworkLayer().NetworkFlow().Endpoints()
		pseudo := uint32(sum16(src.Raw(), 0)) + uint32(sum16(dst.Raw(), 0)) + 6 + uint32(len(tcp.Contents)+len(tcp.Payload))
		if s := sum16(append(bytes.Clone(tcp.Contents), tcp.Payload...), pseudo); s != 0xffff {
			t.Fatalf("packet %d: wrong TCP checksum, sum %#x", count, s)
		}
		if len(b) > 1514 {
			large++
		}
		f := pkt.NetworkLayer().NetworkFlow()
		if flows[f] == nil {
			flows[f] = &stream{}
		}
		flows[f].add(tcp)
	}
	// Either end may say it again when an answer is late.
	if large == 0 || arp < 2 || len(flows) != 4 {
		t.Errorf("%d packets, %d large, %d ARP, %d flows", count, large, arp, len(flows))
	}
	for f, s := range flows {
		if s.length() != size {
			t.Errorf("%v: %d bytes of payload without a hole", f, s.length())
		}
	}
	if stats.PacketsReceived != uint64(count) || stats.PacketsDropped != 0 {
		t.Errorf("statistics %+v for %d packets", stats, count)
	}
	s := n.Stats()
	if k := s.FramesFromAdapter + s.FramesToAdapter; uint64(count) < k {
		t.Errorf("%d packets for %d frames", count, k)
	}
}

// gate is a writer that waits until it is opened.
type gate struct {
	syncBuffer
	open chan struct{}
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	return g.syncBuffer.Write(p)
}

// TestCaptureOverflow: a writer that does not move costs frames in the file,
// and nothing on the data path; the file says how many.
func TestCaptureOverflow(t *testing.T) {
	checkLeaks(t)
	g := &gate{open: make(chan struct{})}
	inner := &stubPort{}
	c := Capture(inner, g, CaptureOptions{Buffer: 16 << 10})
	frame := []engine.Frame{{Data: [][]byte{make([]byte, 1000)}}}
	for range 100 {
		c.Transmit(frame)
	}
	missed := c.Missed()
	if inner.sent != 100 || missed < 70 || missed == 100 {
		t.Fatalf("sent %d, missed %d", inner.sent, missed)
	}
	close(g.open)
	eventually(t, "there is room again", func() bool { return len(g.Bytes()) > 1000 })
	// One that is recorded again carries the number of those before it.
	eventually(t, "recording goes on", func() bool {
		before := c.Missed()
		c.Transmit(frame)
		return c.Missed() == before
	})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	// epb_dropcount, option 4 of 8 bytes; the frames are zeroes. There is one
	// for each time that the buffer was full. The closing statistics have an
	// option of that code and size as well: isb_ifrecv, the frames seen.
	var told uint64
	for rest := g.Bytes(); ; {
		_, after, found := bytes.Cut(rest, []byte{4, 0, 8, 0})
		if !found {
			break
		}
		told += binary.LittleEndian.Uint64(after)
		rest = after[8:]
	}
	if want := c.Missed() + uint64(inner.sent); told != want {
		t.Errorf("packets and statistics add up to %d, not to %d missing and %d seen", told, c.Missed(), inner.sent)
	}
	var stats pcapgo.NgInterfaceStatistics
	r, err := pcapgo.NewNgReader(bytes.NewReader(g.Bytes()), pcapgo.NgReaderOptions{
		StatisticsCallback: func(_ int, s pcapgo.NgInterfaceStatistics) { stats = s },
	})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, _, err = r.ReadPacketData()
	}
	if stats.PacketsDropped != c.Missed() || stats.PacketsReceived != uint64(inner.sent) {
		t.Errorf("statistics %+v, missed %d of %d", stats, c.Missed(), inner.sent)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestCaptureWriteError(t *testing.T) {
	inner := &stubPort{}
	c := Capture(inner, brokenWriter{}, CaptureOptions{})
	c.Transmit([]engine.Frame{{Data: [][]byte{{1}}}})
	if err := c.Close(); !errors.Is(err, io.ErrShortWrite) || !inner.closed {
		t.Errorf("Close: %v", err)
	}
	if inner.sent != 1 {
		t.Error("the frame did not pass")
	}
}

// TestCompleteChecksum: hostile offsets leave the copy as it is.
func TestCompleteChecksum(t *testing.T) {
	for _, c := range []struct {
		start, off uint16
		in, want   string
	}{
		{2, 2, "aaaa 0001 0000 0002", "aaaa 0001 fffc 0002"},
		{8, 0, "0001 0002 0003 0004", "0001 0002 0003 0004"}, // starts at the end
		{2, 5, "0001 0002 0003 0004", "0001 0002 0003 0004"}, // field across the end
		{65535, 65535, "0001 0002", "0001 0002"},             // far out
		{0, 6, "ffff 0000 0000 0000", "ffff 0000 0000 ffff"}, // a UDP checksum is never 0
		{0, 4, "ffff 0000 0000 0000", "ffff 0000 0000 0000"}, // another may be
		{0, 0, "", ""},
	} {
		b := hexBytes(t, c.in)
		completeChecksum(b, &engine.Frame{NeedsChecksum: true, ChecksumStart: c.start, ChecksumOffset: c.off})
		if want := hexBytes(t, c.want); !bytes.Equal(b, want) {
			t.Errorf("%d+%d: %x, want %x", c.start, c.off, b, want)
		}
	}
}

func BenchmarkCapture(b *testing.B) {
	c := Capture(&stubPort{}, io.Discard, CaptureOptions{})
	defer c.Close()
	frame := []engine.Frame{{Data: [][]byte{make([]byte, 66), make([]byte, 60000)}, NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16}}
	b.SetBytes(60066)
	b.ReportAllocs()
	for b.Loop() {
		for { // leave the writer its turn: a frame missed costs nothing
			c.mu.Lock()
			waiting := len(c.out.b)
			c.mu.Unlock()
			if waiting < captureBuffer/2 {
				break
			}
			runtime.Gosched()
		}
		c.Transmit(frame)
	}
	b.ReportMetric(float64(c.Missed())/float64(b.N), "missed/op")
}
