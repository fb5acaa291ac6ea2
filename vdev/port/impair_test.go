// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// gsoFrame is a segment of 2,500 bytes in pieces of 1,000, with FIN, PSH and CWR.
func gsoFrame(t testing.TB, ipv6 bool) engine.Frame {
	payload := make([]byte, 2500)
	for i := range payload {
		payload[i] = byte(i)
	}
	f := engine.Frame{GSO: engine.GSOTCPv4, GSOSize: 1000, HeaderLen: 14 + 20 + 24, NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16}
	head := hexBytes(t, `
52550a000202 020000000015 0800
45 00 09f0 fffe 4000 40 06 0000 0a00020f 0a000202   # 2,544 bytes, id 0xfffe
1000 0050 ffffff00 00000001 60 99 2000 0000 0000 01010101`)
	if ipv6 {
		f.GSO, f.HeaderLen, f.ChecksumStart = engine.GSOTCPv6, 14+40+24, 54
		head = hexBytes(t, `
52550a000202 020000000015 86dd
60000000 09dc 06 40 fd000002000000000000000000000015 fd000002000000000000000000000002
1000 0050 ffffff00 00000001 60 99 2000 0000 0000 01010101`)
	}
	f.Data = [][]byte{head, payload}
	return f
}

func TestSplit(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		f := gsoFrame(t, ipv6)
		out := split(&f)
		if len(out) != 3 {
			t.Fatalf("%d frames", len(out))
		}
		var payload []byte
		for i, b := range out {
			p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
			if e := p.ErrorLayer(); e != nil {
				t.Fatal(e.Error())
			}
			tcp := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
			src, dst := p.NetworkLayer().NetworkFlow().Endpoints()
			pseudo := uint32(sum16(src.Raw(), 0)) + uint32(sum16(dst.Raw(), 0)) + 6 + uint32(len(tcp.Contents)+len(tcp.Payload))
			if s := sum16(append(bytes.Clone(tcp.Contents), tcp.Payload...), pseudo); s != 0xffff {
				t.Errorf("%d: TCP sum %#x", i, s)
			}
			if want := 0xffffff00 + uint32(1000*i); tcp.Seq != want { // it wraps
				t.Errorf("%d: sequence number %#x, want %#x", i, tcp.Seq, want)
			}
			if tcp.FIN != (i == 2) || tcp.PSH != (i == 2) || tcp.CWR != (i == 0) || !tcp.ACK {
				t.Errorf("%d: flags of %+v", i, tcp)
			}
			if ip, ok := p.NetworkLayer().(*layers.IPv4); ok {
				if want := uint16(0xfffe + i); ip.Id != want || sum16(ip.Contents, 0) != 0xffff {
					t.Errorf("%d: id %#x, want %#x; sum %#x", i, ip.Id, want, sum16(ip.Contents, 0))
				}
			}
			payload = append(payload, tcp.Payload...)
		}
		if !bytes.Equal(payload, f.Data[1]) {
			t.Error("payload differs")
		}
	}
}

// TestSplitNonsense: metadata that does not fit leaves a frame in one piece.
func TestSplitNonsense(t *testing.T) {
	for name, spoil := range map[string]func(*engine.Frame){
		"no size":         func(f *engine.Frame) { f.GSOSize = 0 },
		"tiny size":       func(f *engine.Frame) { f.GSOSize = 47 },
		"too long":        func(f *engine.Frame) { f.Data = append(f.Data, make([]byte, 65536)) },
		"short headers":   func(f *engine.Frame) { f.HeaderLen-- },
		"long headers":    func(f *engine.Frame) { f.HeaderLen = 65535 },
		"wrong protocol":  func(f *engine.Frame) { f.GSO = engine.GSOTCPv6 },
		"no data":         func(f *engine.Frame) { f.Data = f.Data[:1] },
		"cut":             func(f *engine.Frame) { f.Data = [][]byte{f.Data[0][:40]} },
		"UDP":             func(f *engine.Frame) { f.Data[0][23] = 17 },
		"IP header short": func(f *engine.Frame) { f.Data[0][14] = 0x41 },
		"IP header long":  func(f *engine.Frame) { f.Data[0][14] = 0x4f },
		"TCP header":      func(f *engine.Frame) { f.Data[0][46] = 0x10 },
		"empty":           func(f *engine.Frame) { f.Data = nil },
	} {
		f := gsoFrame(t, false)
		f.NeedsChecksum = false
		spoil(&f)
		if out := split(&f); len(out) != 1 || !bytes.Equal(out[0], bytes.Join(f.Data, nil)) {
			t.Errorf("%s: %d frames", name, len(out))
		}
	}
}

// FuzzSplit: whatever the metadata says, no byte behind the headers is lost.
func FuzzSplit(f *testing.F) {
	for _, ipv6 := range []bool{false, true} {
		g := gsoFrame(f, ipv6)
		f.Add(bytes.Join(g.Data, nil), uint8(g.GSO), g.GSOSize, g.HeaderLen, g.ChecksumStart, g.ChecksumOffset)
	}
	f.Fuzz(func(t *testing.T, b []byte, gso uint8, size, head, start, off uint16) {
		in := bytes.Clone(b)
		out := split(&engine.Frame{
			Data: [][]byte{b}, GSO: engine.GSOType(gso % 4), GSOSize: size, HeaderLen: head,
			NeedsChecksum: gso&4 != 0, ChecksumStart: start, ChecksumOffset: off,
		})
		if !bytes.Equal(in, b) {
			t.Fatal("the sender's bytes were changed")
		}
		if len(out) == 1 {
			if len(out[0]) != len(b) {
				t.Fatal("a whole frame changed its length")
			}
			return
		}
		var payload []byte
		for _, o := range out {
			payload = append(payload, o[head:]...)
		}
		if !bytes.Equal(payload, b[head:]) {
			t.Fatal("payload differs")
		}
	})
}

// impaired sends numbered frames of 18 bytes over a bad wire to the adapter,
// and returns what arrives after the clock was advanced by each step in turn.
func impaired(t testing.TB, r Rules, seed uint64, count int, steps ...time.Duration) (got [][]byte, s ImpairStats) {
	t.Helper()
	clock := enginetest.NewClock()
	inner := &stubPort{}
	i, err := Impair(inner, Impairments{ToAdapter: r, Seed: seed, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	i.Attach(func(frames []engine.Frame) {
		for j := range frames {
			got = append(got, bytes.Join(frames[j].Data, nil))
		}
	})
	for k := range count {
		b := make([]byte, 18)
		b[12] = 0x08 // IPv4, half of the frames; else ARP
		if r.Corrupt > 0 && k%2 == 1 {
			b[13] = 0x06
		}
		binary.BigEndian.PutUint32(b[14:], uint32(k))
		inner.receive([]engine.Frame{{Data: [][]byte{b}}})
	}
	for _, d := range steps {
		clock.Advance(d)
	}
	s, _ = i.Stats()
	i.Close()
	return got, s
}

func numbers(frames [][]byte) []int {
	var out []int
	for _, b := range frames {
		out = append(out, int(binary.BigEndian.Uint32(b[14:])))
	}
	return out
}

func TestImpairRules(t *testing.T) {
	const count = 10000
	near := func(name string, got uint64, share float64) {
		t.Helper()
		// Five standard deviations.
		if d := math.Abs(float64(got) - share*count); d > 5*math.Sqrt(count*share*(1-share)) {
			t.Errorf("%s: %d of %d, want a share of %v", name, got, count, share)
		}
	}
	got, s := impaired(t, Rules{Loss: 0.1}, 1, count)
	near("lost", s.Lost, 0.1)
	if uint64(len(got)) != count-s.Lost || !slices.IsSorted(numbers(got)) {
		t.Errorf("loss: %d arrived, %+v", len(got), s)
	}
	again, _ := impaired(t, Rules{Loss: 0.1}, 1, count)
	other, _ := impaired(t, Rules{Loss: 0.1}, 2, count)
	if !slices.Equal(numbers(got), numbers(again)) || slices.Equal(numbers(got), numbers(other)) {
		t.Error("a seed does not decide")
	}

	got, s = impaired(t, Rules{Duplicate: 0.2}, 1, count)
	near("duplicated", s.Duplicated, 0.2)
	if uint64(len(got)) != count+s.Duplicated {
		t.Errorf("duplicates: %d arrived", len(got))
	}

	got, s = impaired(t, Rules{Corrupt: 0.3}, 1, count)
	near("corrupted", s.Corrupted, 0.15)
	flipped := 0
	for k, b := range got {
		want := make([]byte, 18)
		want[12] = 0x08
		if k%2 == 1 {
			want[13] = 0x06
		}
		binary.BigEndian.PutUint32(want[14:], uint32(k))
		for j := range b {
			n := bits.OnesCount8(b[j] ^ want[j])
			if flipped += n; n > 0 && (j < 14 || k%2 == 1) {
				t.Fatalf("frame %d: byte %d damaged", k, j)
			}
		}
	}
	if uint64(flipped) != s.Corrupted {
		t.Errorf("%d bits flipped, %d frames corrupted", flipped, s.Corrupted)
	}

	got, s = impaired(t, Rules{Reorder: 0.1, ReorderBy: time.Second}, 1, count, time.Second-1)
	near("reordered", s.Reordered, 0.1)
	if uint64(len(got)) != count-s.Reordered || !slices.IsSorted(numbers(got)) {
		t.Errorf("before the reordered: %d arrived", len(got))
	}
	got, _ = impaired(t, Rules{Reorder: 0.1, ReorderBy: time.Second}, 1, count, time.Second)
	if len(got) != count || slices.IsSorted(numbers(got)) {
		t.Errorf("with the reordered: %d arrived, or all in order", len(got))
	}
}

func TestImpairTiming(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules Rules
		count int
		steps []time.Duration
		want  int
	}{
		{"at once", Rules{}, 100, nil, 100},
		{"not before its time", Rules{Delay: time.Second}, 100, []time.Duration{time.Second - 1}, 0},
		{"in its time", Rules{Delay: time.Second}, 100, []time.Duration{time.Second - 1, 1}, 100},
		{"jitter, start", Rules{Delay: time.Second, Jitter: time.Second}, 1000, []time.Duration{time.Second - 1}, 0},
		{"jitter, end", Rules{Delay: time.Second, Jitter: time.Second}, 1000, []time.Duration{2 * time.Second}, 1000},
		{"rate", Rules{Rate: 1800}, 100, []time.Duration{500 * time.Millisecond}, 50}, // 18 bytes each
		{"overflow", Rules{Delay: time.Second}, impairLimit + 5, []time.Duration{time.Second}, impairLimit},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, s := impaired(t, c.rules, 1, c.count, c.steps...)
			if len(got) != c.want || !slices.IsSorted(numbers(got)) {
				t.Errorf("%d arrived, want %d, in order", len(got), c.want)
			}
			if want := uint64(max(0, c.count-impairLimit)); s.Overflowed != want {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestImpairRejects(t *testing.T) {
	for _, r := range []Rules{{Loss: -1}, {Corrupt: 1.1}, {Duplicate: math.NaN()}, {Reorder: 2}, {Delay: -1}, {Jitter: -1}, {Rate: -1}, {ReorderBy: -1}} {
		if _, err := Impair(&stubPort{}, Impairments{ToAdapter: r}); err == nil {
			t.Errorf("to: %+v accepted", r)
		}
		if _, err := Impair(&stubPort{}, Impairments{FromAdapter: r}); err == nil {
			t.Errorf("from: %+v accepted", r)
		}
	}
}

// TestImpairSet: rules change while frames are under way; without rules frames
// pass as they are, and what the port does not take is not taken.
func TestImpairSet(t *testing.T) {
	clock := enginetest.NewClock()
	inner := &stubPort{}
	i, err := Impair(inner, Impairments{Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	var got []engine.Frame
	i.Attach(func(frames []engine.Frame) {
		for _, f := range frames {
			got = append(got, engine.Frame{Data: slices.Clone(f.Data), GSO: f.GSO})
		}
	})
	send := func() { inner.receive([]engine.Frame{gsoFrame(t, false)}) }
	count := func(what string, want int) {
		t.Helper()
		if len(got) != want {
			t.Errorf("%s: %d frames arrived, want %d", what, len(got), want)
		}
	}
	send()
	count("without rules", 1)
	if got[0].GSO == 0 {
		t.Error("a large frame was cut without a rule")
	}
	rules := Impairments{ToAdapter: Rules{Delay: time.Second}, Seed: 3}
	if err := i.Set(rules); err != nil {
		t.Fatal(err)
	}
	if i.Impairments() != rules {
		t.Errorf("set %+v, have %+v", rules, i.Impairments())
	}
	send()
	count("with a delay", 1)
	if err := i.Set(Impairments{}); err != nil {
		t.Fatal(err)
	}
	send() // behind those that are under way
	count("without rules, others under way", 1)
	clock.Advance(time.Second)
	count("in their time", 1+3+3)
	send()
	count("without rules again", 8)
	if got[7].GSO == 0 {
		t.Error("a large frame was cut without a rule")
	}
	if err := i.Set(Impairments{ToAdapter: Rules{Loss: 2}}); err == nil {
		t.Error("a share of 2 was accepted")
	}
	if err := i.Set(Impairments{FromAdapter: Rules{Loss: 1}}); err != nil {
		t.Fatal(err)
	}
	if n := i.Transmit([]engine.Frame{gsoFrame(t, false)}); n != 1 {
		t.Errorf("a bad wire took %d frames", n)
	}
	to, from := i.Stats()
	if (to != ImpairStats{Frames: 6, Delivered: 6}) || (from != ImpairStats{Frames: 3, Lost: 3}) {
		t.Errorf("to %+v, from %+v", to, from)
	}
}

// TestImpairTransfer: connections get over a bad wire, and what is corrupted
// is caught by a checksum.
func TestImpairTransfer(t *testing.T) {
	const size = 2 << 20
	checkLeaks(t)
	n, err := NewNAT(NATConfig{})
	if err != nil {
		t.Fatal(err)
	}
	bad := Rules{Loss: 0.005, Corrupt: 0.005, Duplicate: 0.01, Reorder: 0.01, Jitter: 100 * time.Microsecond}
	i, err := Impair(n, Impairments{FromAdapter: bad, ToAdapter: Rules{Delay: 200 * time.Microsecond, Duplicate: 0.01}, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	p := newPeer(t, i, n.Lease(), true)
	a, h := outboundPair(t, n, p)
	if err := transfer(a, h, size, 1); err != nil {
		t.Error(err)
	}
	if err := transfer(h, a, size, 2); err != nil {
		t.Error(err)
	}
	_, s := i.Stats()
	if s.Lost == 0 || s.Corrupted == 0 || n.Stats().DroppedChecksum == 0 {
		t.Errorf("wire %+v, gateway %+v", s, n.Stats())
	}
	if i.MTU() != n.MTU() {
		t.Error("MTU")
	}
}
