// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"toebox/ci/conformance"
	"toebox/ci/rig"
	"toebox/guestdriver"
)

const (
	patience = 60 * time.Second
	// sent and received are payload of each connection, as the driver sees it.
	sent     = 3<<20 + 17
	received = 2<<20 + 5
)

// Bits of tcp.completeness, tshark's summary of a conversation.
const (
	sawSYN    = 1
	sawSYNACK = 2
	sawACK    = 4
	sawData   = 8
	sawFIN    = 16
	sawRST    = 32
)

// talk is one conversation that the test had.
type talk struct {
	name            string
	adapter, host   netip.AddrPort
	sent, received  int
	sentBy, heardOf uint64 // seeds of the payload
	completeness    uint64
}

// TestCapture records a connection each way and one that is refused.
func TestCapture(t *testing.T) {
	program := tshark(t) // before the work is done in vain
	path := filepath.Join(t.TempDir(), "net.pcapng")
	talks, mac := record(t, path)

	packets := decode(t, path)
	t.Logf("%d packets", len(packets))
	var large, in, out int
	for i := range packets {
		p := &packets[i]
		if bytes.Equal(p.source, mac) {
			p.direction = outbound
			out++
		} else {
			p.direction = inbound
			in++
		}
		if p.length > 1514 {
			large++
		}
	}
	if large == 0 || in == 0 || out == 0 {
		t.Errorf("%d packets in, %d out, %d of them larger than the wire's", in, out, large)
	}
	shown := show(t, program, path, packets)
	if len(shown) != len(packets) {
		t.Fatalf("tshark shows %d packets, gopacket %d", len(shown), len(packets))
	}
	for i, s := range shown {
		p := packets[i]
		if s.direction != p.direction || s.length != p.length || s.payload != len(p.payload) || s.flags != p.flags {
			t.Errorf("packet %d: tshark sees direction %d, %d bytes, TCP flags %#x, payload %d; gopacket %d, %d, %#x, %d",
				i+1, s.direction, s.length, s.flags, s.payload, p.direction, p.length, p.flags, len(p.payload))
		}
	}
	for _, k := range talks {
		t.Run(k.name, func(t *testing.T) { k.verify(t, packets, shown) })
	}
	streams := map[string]bool{}
	for _, s := range shown {
		if s.stream != "" {
			streams[s.stream] = true
		}
	}
	if len(streams) != len(talks) {
		t.Errorf("%d TCP conversations, want %d", len(streams), len(talks))
	}
}

// verify compares one conversation with what both readers saw of it.
func (k *talk) verify(t *testing.T, packets []packet, shown []shownPacket) {
	up, down := newStream(k.sent), newStream(k.received)
	fins := map[uint64]bool{}
	total := map[uint64]int{}
	for i, p := range packets {
		s := shown[i]
		switch {
		case k.is(p.from, p.to):
			up.add(t, p)
		case k.is(p.to, p.from):
			down.add(t, p)
		default:
			continue
		}
		if s.completeness != k.completeness {
			t.Fatalf("packet %d: tshark finds the conversation complete to %#x, want %#x", i+1, s.completeness, k.completeness)
		}
		if p.flags&flagFIN != 0 {
			fins[p.direction] = true
		}
		// Relative sequence numbers: 0 is the SYN. A packet that is sent
		// again moves nothing.
		if s.payload > 0 {
			total[p.direction] = max(total[p.direction], int(s.seq)+s.payload-1)
		}
	}
	if total[outbound] != k.sent || total[inbound] != k.received {
		t.Errorf("tshark counts %d bytes sent and %d received, want %d and %d", total[outbound], total[inbound], k.sent, k.received)
	}
	if k.completeness&sawFIN != 0 && (!fins[outbound] || !fins[inbound]) {
		t.Errorf("FIN seen in %v", fins)
	}
	up.compare(t, "sent", k.sentBy)
	down.compare(t, "received", k.heardOf)
}

// is reports whether these are the ends. The adapter's port may not be known.
func (k *talk) is(adapter, host netip.AddrPort) bool {
	return host == k.host && adapter.Addr() == k.adapter.Addr() && (k.adapter.Port() == 0 || adapter == k.adapter)
}

// record has the conversations, the capture going to path, and returns them
// with the adapter's address.
func record(t *testing.T, path string) ([]*talk, net.HardwareAddr) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	// The device closes the file.
	r, err := rig.Inproc(rig.Config{Seed: 1, Capture: file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	env := r.Env()
	bus, err := env.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a, err := guestdriver.Open(ctx, bus, guestdriver.Options{Memory: 16 << 20})
	if err != nil {
		bus.Close()
		t.Fatal(err)
	}
	defer a.Close() //nolint:errcheck // closed below
	mac, err := net.ParseMAC(r.Device().Stats().MAC)
	if err != nil {
		t.Fatal(err)
	}

	complete := uint64(sawSYN | sawSYNACK | sawACK | sawData | sawFIN)
	active := &talk{name: "outbound", sent: sent, received: received, sentBy: 1, heardOf: 2, completeness: complete}
	passive := &talk{name: "inbound", sent: sent, received: received, sentBy: 3, heardOf: 4, completeness: complete}
	// A RST that answers a SYN acknowledges it.
	refused := &talk{name: "refused", completeness: sawSYN | sawACK | sawRST}

	served, err := env.Peer.Serve(ctx, script(active))
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.DialContext(ctx, "tcp", served.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	active.run(ctx, t, c, served)

	ports, err := env.Peer.Reachable(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	l, err := a.Listen("tcp", fmt.Sprintf(":%d", ports[0]))
	if err != nil {
		t.Fatal(err)
	}
	dialed, err := env.Peer.Dial(ctx, ports[0], script(passive))
	if err != nil {
		t.Fatal(err)
	}
	if c, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	passive.run(ctx, t, c, dialed)
	if err := l.Close(); err != nil {
		t.Error(err)
	}

	if refused.host, err = env.Peer.Refused(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := a.DialContext(ctx, "tcp", refused.host.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial of a port where nobody listens: %v", err)
	}
	refused.adapter = netip.AddrPortFrom(active.adapter.Addr(), 0)

	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if n := r.Device().Stats().Missed; n != 0 {
		t.Fatalf("the capture has missed %d frames", n)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return []*talk{active, passive, refused}, mac
}

// script is the host's part of a conversation.
func script(k *talk) conformance.Script {
	return conformance.Script{
		{Op: conformance.OpDiscard, N: int64(k.sent)},
		{Op: conformance.OpSend, N: int64(k.received), Seed: k.heardOf},
		{Op: conformance.OpFIN},
		{Op: conformance.OpDiscard},
	}
}

// run is the adapter's part.
func (k *talk) run(ctx context.Context, t *testing.T, c net.Conn, s conformance.Session) {
	t.Helper()
	defer c.Close() //nolint:errcheck // closed below
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	k.adapter, k.host = address(t, c.LocalAddr()), address(t, c.RemoteAddr())
	p := make([]byte, k.sent)
	conformance.Payload(p, k.sentBy, 0)
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, payload(k.received, k.heardOf)) {
		t.Fatalf("%d bytes received, not what was sent", len(got))
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	res, err := s.Result(ctx)
	if err != nil || res.Err != "" || res.Received != int64(k.sent) || !res.EOF {
		t.Fatalf("the peer: %+v, %v", res, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func address(t *testing.T, a net.Addr) netip.AddrPort {
	t.Helper()
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func payload(n int, seed uint64) []byte {
	p := make([]byte, n)
	conformance.Payload(p, seed, 0)
	return p
}

// stream puts one direction's payload together.
type stream struct {
	first uint32 // sequence number of the first byte
	known bool
	data  []byte
	have  []bool
}

func newStream(n int) *stream { return &stream{data: make([]byte, n), have: make([]bool, n)} }

func (s *stream) add(t *testing.T, p packet) {
	t.Helper()
	if p.flags&flagSYN != 0 {
		s.first, s.known = p.seq+1, true
	}
	at := int(int32(p.seq - s.first))
	if len(p.payload) == 0 {
		return
	}
	if !s.known || at < 0 || at+len(p.payload) > len(s.data) {
		t.Fatalf("%d bytes at %d of %d", len(p.payload), at, len(s.data))
	}
	copy(s.data[at:], p.payload)
	for i := range p.payload {
		s.have[at+i] = true
	}
}

func (s *stream) compare(t *testing.T, what string, seed uint64) {
	t.Helper()
	if i := slices.Index(s.have, false); i >= 0 {
		t.Errorf("%s: byte %d of %d is not in the file", what, i, len(s.have))
	} else if !bytes.Equal(s.data, payload(len(s.data), seed)) {
		t.Errorf("%s: the file has other bytes", what)
	}
}
