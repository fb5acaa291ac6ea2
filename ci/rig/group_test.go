// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"toebox/ci/rig/rigtest"
	"toebox/guestdriver"
	"toebox/vdev/device"
	"toebox/vdev/port"
)

const linkMTU = 1500

// station is an adapter on a switch, with its driver.
type station struct {
	dev  *device.Device
	wire *port.SwitchPort
	bus  *mortalBus
	a    *guestdriver.Adapter
}

// mortalBus is a bus that the adapter can be taken from.
type mortalBus struct {
	guestdriver.Bus
	dead atomic.Bool
}

func (b *mortalBus) Read32(bar int, offset uint32) uint32 {
	if b.dead.Load() {
		return 0xffffffff
	}
	return b.Bus.Read32(bar, offset)
}

// kill ends an adapter as SIGKILL does: it says nothing any more, to anybody.
func (s *station) kill(t *testing.T) {
	t.Helper()
	if err := s.wire.Close(); err != nil {
		t.Error(err)
	}
	s.bus.dead.Store(true)
	if err := s.dev.Close(); err != nil {
		t.Error(err)
	}
}

// station plugs an adapter into a switch.
func newStation(t *testing.T, p *port.SwitchPort, seed uint64, o guestdriver.Options, addresses ...string) *station {
	t.Helper()
	lease := port.Lease{MTU: linkMTU}
	for _, a := range addresses {
		lease.Prefixes = append(lease.Prefixes, netip.MustParsePrefix(a))
	}
	d, inner := rigtest.Device(t, device.Config{Port: p, Lease: lease, Seed: seed})
	bus := &mortalBus{Bus: inner}
	return &station{d, p, bus, rigtest.Driver(t, bus, o)}
}

// link is a group of two adapters and a peer on one link.
type link struct {
	*testing.T
	sw   *port.Switch
	at   [2]*station
	g    *guestdriver.Group
	peer *station
}

func newLink(t *testing.T) *link {
	t.Helper()
	sw := port.NewSwitch(linkMTU)
	peer := newStation(t, sw.Open(), 9, guestdriver.Options{}, "10.0.2.2/24", "fd00::2/64")
	l := newGroup(t, sw, "fd00::")
	l.peer = peer
	return l
}

// newGroup is a link without a peer on it, with addresses that begin so.
func newGroup(t *testing.T, sw *port.Switch, six string) *link {
	t.Helper()
	l := &link{T: t, sw: sw}
	for i, addresses := range [][]string{{"10.0.2.15/24", six + "15/64"}, {"10.0.2.16/24", six + "16/64"}} {
		l.at[i] = newStation(t, l.sw.Open(), uint64(i+1), guestdriver.Options{Queues: 2, CarryOver: true}, addresses...)
	}
	g, err := guestdriver.NewGroup(l.at[0].a, l.at[1].a)
	if err != nil {
		t.Fatal(err)
	}
	l.g = g
	return l
}

// until waits for something that the other goroutines bring about.
func (l *link) until(what string, cond func() bool) {
	l.Helper()
	rigtest.Until(l, what, cond, func() string {
		return fmt.Sprintf("%+v; %+v", l.at[0].a.Stats(), l.at[1].a.Stats())
	})
}

// echo has the peer send back what it gets on a port.
func (l *link) echo(address string) {
	l.Helper()
	in, err := l.peer.a.Listen("tcp", address)
	if err != nil {
		l.Fatal(err)
	}
	go rigtest.Echo(in)
}

// TestRIG09_Failover: an adapter is stopped in the middle of transfers both ways,
// and the other one goes on with its connections; then that one is. Both streams
// of each are exact, and the peer, which stays, sees neither an end nor a reset.
func TestRIG09_Failover(t *testing.T) {
	const total, parts = 3 << 20, 3
	l := newLink(t)
	l.echo(":7")
	dials := []string{"10.0.2.2:7", "10.0.2.2:7", "[fd00::2]:7"}
	var conns []net.Conn
	for _, address := range dials {
		nc, err := l.at[0].a.Dial("tcp", address)
		conns = append(conns, within(t, nc, err))
	}
	rigtest.Transfers(t, conns, total, parts, func(part int) {
		from, to := l.at[part%2], l.at[(part+1)%2]
		if err := l.g.Rejoin(to.a); err != nil {
			t.Fatal(err)
		}
		if err := l.g.Failover(t.Context(), from.a); err != nil {
			t.Fatal(err)
		}
		if !from.a.Standby() || to.a.Standby() {
			t.Errorf("part %d: %v and %v stand by", part, from.a.Standby(), to.a.Standby())
		}
	})
	for i, s := range l.at {
		if s := s.a.Stats(); s.CarriedOver != uint64(len(dials)) || s.CarryFailed != 0 || s.TakenOver != 1 {
			t.Errorf("adapter %d: %d carried over, %d failed, %d taken over", i, s.CarriedOver, s.CarryFailed, s.TakenOver)
		}
	}
	if s := l.g.Stats(); s.Takeovers != parts-1 || s.Failed != 0 {
		t.Errorf("%+v", s)
	}
	s := l.peer.dev.Stats()
	if s.Engine.ResetsReceived+s.Engine.ResetsSent != 0 {
		t.Errorf("the peer saw %d resets and sent %d", s.Engine.ResetsReceived, s.Engine.ResetsSent)
	}
	if err := l.g.Failover(t.Context(), l.at[0].a); err == nil {
		t.Error("fail-over to an adapter that stands by")
	}
}

// exchange sends a word over a connection and wants it back.
func exchange(t *testing.T, c net.Conn, word string) {
	t.Helper()
	b := make([]byte, len(word))
	if _, err := io.WriteString(c, word); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != word {
		t.Fatalf("%q came back as %q, %v", word, b, err)
	}
}

// TestRIG09_Standby: what else moves. Listeners go on, of one adapter and of the
// group, at addresses of one that stopped; a connection that waits to be accepted,
// data that nobody has read, and attributes move with their connections; dials
// find the adapter that works.
func TestRIG09_Standby(t *testing.T) {
	l := newLink(t)
	l.echo(":7")
	first, second := l.at[0], l.at[1]
	own, err := first.a.Listen("tcp", "10.0.2.15:80")
	if err != nil {
		t.Fatal(err)
	}
	all, err := l.g.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { all.Close() })
	go rigtest.Echo(all)
	_, port, _ := net.SplitHostPort(all.Addr().String())
	dial := func(a *guestdriver.Adapter, address string) *guestdriver.Conn {
		t.Helper()
		c, err := a.Dial("tcp", address)
		return within(t, c, err)
	}
	waits := dial(l.peer.a, "10.0.2.15:80")
	if _, err := io.WriteString(waits, "before"); err != nil {
		t.Fatal(err)
	}
	grouped := dial(l.peer.a, "[fd00::15]:"+port)
	exchange(t, grouped, "one")
	idle := dial(first.a, "10.0.2.2:7")
	if err := idle.SetTOS(32); err != nil {
		t.Fatal(err)
	}
	l.until("the arrival that waits", func() bool { return first.a.Stats().Connections == 3 })

	if err := l.g.Failover(t.Context(), first.a); err != nil {
		t.Fatal(err)
	}
	if _, err := first.a.Dial("tcp", "10.0.2.2:7"); !errors.Is(err, guestdriver.ErrStandby) {
		t.Errorf("dial over the adapter that stands by: %v", err)
	}
	exchange(t, idle, "two")
	if err := idle.SetNoDelay(true); err != nil {
		t.Error(err)
	}
	if v, err := second.a.Scalar(t.Context(), idle.ID(), 0x0211); err != nil || v != 32 {
		t.Errorf("TOS is %d, %v", v, err)
	}
	if a := idle.LocalAddr().String(); !strings.HasPrefix(a, "10.0.2.15:") {
		t.Errorf("the connection's address is %s", a)
	}
	exchange(t, grouped, "three")
	exchange(t, dial(l.peer.a, "[fd00::15]:"+port), "four")
	exchange(t, dial(l.peer.a, "10.0.2.16:"+port), "five")
	c, err := l.g.Dial("tcp", "10.0.2.2:7")
	exchange(t, within(t, c, err), "six")
	got, err := own.Accept()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 6)
	if _, err := io.ReadFull(within(t, got, nil), b); err != nil || string(b) != "before" {
		t.Errorf("read %q, %v", b, err)
	}
	go rigtest.Echo(own)
	later := dial(l.peer.a, "10.0.2.15:80")
	exchange(t, later, "seven")

	// Back again: it has no address until it is needed.
	if err := l.g.Rejoin(first.a); err != nil {
		t.Fatal(err)
	}
	if _, err := first.a.Dial("tcp", "10.0.2.2:7"); err == nil {
		t.Error("dial over an adapter without an address")
	}
	if err := l.g.Failover(t.Context(), second.a); err != nil {
		t.Fatal(err)
	}
	exchange(t, later, "eight")
	exchange(t, grouped, "nine")
	exchange(t, dial(l.peer.a, "10.0.2.16:"+port), "ten")
}

// TestRIG09_Crash: an adapter is gone in the middle of a transfer. Its connections
// end with an error on both sides, also for who reads what came before: what is lost
// is never an end of the stream; what waits in host memory bounds what the peer got;
// the other adapter has its address and its listeners.
func TestRIG09_Crash(t *testing.T) {
	l := newLink(t)
	first := l.at[0]
	in, err := l.peer.a.Listen("tcp", ":9")
	if err != nil {
		t.Fatal(err)
	}
	own, err := first.a.Listen("tcp", "10.0.2.15:80")
	if err != nil {
		t.Fatal(err)
	}
	go rigtest.Echo(own)
	nc, err := first.a.Dial("tcp", "10.0.2.2:9")
	c := within(t, nc, err)
	pc, err := in.Accept()
	peer := within(t, pc, err)
	got := make(chan int64, 1)
	half := make(chan struct{})
	go func() {
		n, _ := io.CopyN(io.Discard, peer, 1<<20)
		close(half)
		m, err := io.Copy(io.Discard, peer)
		if err == nil {
			t.Error("the peer's stream has an orderly end")
		}
		got <- n + m
	}()
	sent := make(chan int64, 1)
	go func() {
		n, err := io.Copy(struct{ io.Writer }{c}, endless{})
		if !errors.Is(err, guestdriver.ErrGone) {
			t.Errorf("write: %v", err)
		}
		sent <- n
	}()
	const down = 20_000 // what fits the receive window
	if n, err := peer.Write(make([]byte, down)); n != down || err != nil {
		t.Fatal(n, err)
	}
	<-half
	first.kill(t)
	upper := <-sent
	if n, err := io.Copy(io.Discard, struct{ io.Reader }{c}); n > down || !errors.Is(err, guestdriver.ErrGone) {
		t.Errorf("read %d bytes, then %v", n, err)
	}
	// The peer learns of it when it asks: the address has moved.
	for err := error(nil); err == nil; {
		_, err = peer.Write([]byte{1})
	}
	if n := <-got; n < 1<<20 || n > upper {
		t.Errorf("the peer got %d bytes of at most %d", n, upper)
	}
	d, err := l.peer.a.Dial("tcp", "10.0.2.15:80")
	exchange(t, within(t, d, err), "again")
	if s := l.g.Stats(); s.Takeovers != 1 || !first.a.Standby() {
		t.Errorf("%+v", s)
	}
}
