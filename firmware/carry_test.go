// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"toebox/firmware"
	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
	"toebox/firmware/firmwaretest"
	"toebox/vdev/abi"
)

// echoPeer sends back what it receives, and counts.
type echoPeer struct {
	engine engine.Engine
	conn   atomic.Pointer[engine.Endpoint]
	done   chan error
	end    chan struct{}
}

// received is how many bytes the peer's TCP has.
func (p *echoPeer) received() uint64 { return (*p.conn.Load()).Info().Received }

type ignoreEvents struct{}

func (ignoreEvents) Notify(engine.Events) {}

// newEchoPeer serves one connection at 10.0.2.2:7.
func newEchoPeer(t *testing.T, port engine.Port) *echoPeer {
	t.Helper()
	return newPeer(t, port, (*echoPeer).serve)
}

func newPeer(t *testing.T, port engine.Port, serve func(*echoPeer, engine.Endpoint) error) *echoPeer {
	t.Helper()
	e, err := engine.New(engine.Config{
		Port: port, MAC: []byte{2, 0, 0, 0, 0, 2}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.2/24")},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := e.Open(engine.TCP, false, ignoreEvents{})
	if err == nil {
		err = l.Bind(netip.MustParseAddrPort("0.0.0.0:7"))
	}
	if err == nil {
		err = l.Listen(16)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &echoPeer{engine: e, done: make(chan error, 1), end: make(chan struct{})}
	go func() { p.done <- serve(p, l) }()
	t.Cleanup(func() {
		close(p.end)
		<-p.done
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// serve ends with the error that the connection ends with.
func (p *echoPeer) serve(l engine.Endpoint) error {
	var c engine.Endpoint
	var held []byte
	for {
		select {
		case <-p.end:
			return nil
		default:
			runtime.Gosched()
		}
		if c == nil {
			if c, _ = l.Accept(func(engine.Endpoint) engine.Sink { return ignoreEvents{} }); c != nil {
				p.conn.Store(&c)
			}
			continue
		}
		if len(held) < 64<<10 {
			_, err := c.Read(64<<10, func(b []byte) int { held = append(held, b...); return len(b) })
			if err != nil && !errors.Is(err, engine.ErrWouldBlock) {
				return err
			}
		}
		if len(held) > 0 {
			n, err := c.Write(len(held), func(b []byte) error { copy(b, held); held = held[len(b):]; return nil })
			if err != nil && !errors.Is(err, engine.ErrWouldBlock) {
				return err
			}
			_ = n
		}
	}
}

// user is a host that sends a pattern to an echo and keeps what is not
// acknowledged.
type user struct {
	*rig
	id        uint64
	total     int
	out       int // bytes posted
	acked     int // bytes that completed, or cancelled, sends say
	in        int // bytes delivered
	free      []uint64
	sends     []abi.Fields
	buffers   map[uint32]uint64
	spare     []uint64 // receive memory that is not posted
	greedy    bool     // posts receive buffers
	reports   []abi.Fields
	cancelled int
}

const userBuffer = 16 << 10

func echoed(i int) byte { return byte(uint32(i) * 2654435761 >> 23) }

func newUser(r *rig, total int) *user {
	u := &user{rig: r, total: total, buffers: map[uint32]uint64{}, greedy: true}
	for range 16 {
		u.free = append(u.free, r.Chip.Alloc(userBuffer, 8))
		u.spare = append(u.spare, r.Chip.Alloc(userBuffer, 8))
	}
	return u
}

// pump posts what it may and takes what there is.
func (u *user) pump() {
	u.t.Helper()
	for len(u.free) > 0 && u.out < u.total {
		n := min(userBuffer-u.out%977, u.total-u.out)
		f := abi.Fields{Type: abi.TypeBufferSend, Tag: u.Tag(), Conn: u.id, Base: u.free[0], Length: uint32(n)}
		for i, b := 0, u.Chip.Bytes(f.Base, n); i < n; i++ {
			b[i] = echoed(u.out + i)
		}
		u.free = u.free[1:]
		u.sends = append(u.sends, f)
		u.out += n
		u.post(f)
	}
	for u.greedy && len(u.spare) > 0 {
		f := abi.Fields{Type: abi.TypeBufferAvailable, Tag: u.Tag(), Conn: u.id, Base: u.spare[0], Length: userBuffer}
		u.spare = u.spare[1:]
		u.buffers[f.Tag] = f.Base
		u.post(f)
	}
	u.take()
}

func (u *user) take() {
	u.t.Helper()
	for _, f := range u.Pending() {
		u.one(f)
	}
}

// one acts on a response.
func (u *user) one(f abi.Fields) {
	u.t.Helper()
	switch {
	case f.Flags&abi.FlagReport != 0:
		u.reports = append(u.reports, f)
	case len(u.sends) > 0 && f.Tag == u.sends[0].Tag && f.Type == abi.TypeBufferDone:
		u.acked += int(f.Length)
		if f.Aux == uint16(abi.StatusCancelled) {
			u.cancelled++
		} else if f.Aux != 0 || f.Length != u.sends[0].Length || u.cancelled > 0 {
			u.t.Fatalf("send: %+v", f)
		}
		u.free = append(u.free, u.sends[0].Base)
		u.sends = u.sends[1:]
	case f.Type == abi.TypeBufferReceive:
		base := u.buffers[f.Tag]
		u.check(u.Chip.Bytes(base+uint64(f.Offset), int(f.Length)))
		if f.Flags&abi.FlagFinal != 0 {
			u.spare = append(u.spare, base)
			delete(u.buffers, f.Tag)
		}
	case f.Type == abi.TypeBufferDone && u.buffers[f.Tag] != 0 && f.Aux == uint16(abi.StatusCancelled):
		u.spare = append(u.spare, u.buffers[f.Tag])
		delete(u.buffers, f.Tag)
	default:
		u.t.Fatalf("response %+v", f)
	}
}

// forgetUntaken takes back what the adapter did not take before it stopped.
func (u *user) forgetUntaken() {
	for _, f := range u.Untaken() {
		if base := u.buffers[f.Tag]; base != 0 {
			u.spare = append(u.spare, base)
			delete(u.buffers, f.Tag)
			continue
		}
		u.free = append(u.free, f.Base)
		u.sends = u.sends[:len(u.sends)-1] // the youngest are left over
	}
}

func (u *user) check(b []byte) {
	u.t.Helper()
	for i := range b {
		if b[i] != echoed(u.in+i) {
			u.t.Fatalf("byte %d is %#x, want %#x", u.in+i, b[i], echoed(u.in+i))
		}
	}
	u.in += len(b)
}

// until pumps until cond holds.
func (u *user) until(what string, step func(), cond func() bool) {
	u.t.Helper()
	if err := u.Wait(what, func() bool { step(); return cond() }); err != nil {
		u.t.Fatalf("%v: %d bytes out, %d acknowledged, %d in; %d sends, %d buffers, %d reports; stopped %v, queue %+v, %d left, %d refused",
			err, u.out, u.acked, u.in, len(u.sends), len(u.buffers), len(u.reports), u.fw.Stopped(), u.fw.QueueStatus(0),
			u.counter(abi.CounterCarriedOut), u.counter(abi.CounterCarryRefused))
	}
}

// carryRig is an adapter on one end of a wire, whose firmware can be replaced.
type carryRig struct {
	*rig
	port   engine.Port
	engine engine.Engine
	mac    byte // last of the Ethernet address
}

func newCarryRig(t *testing.T, port engine.Port, change ...func(*firmware.Config)) *carryRig {
	c := &carryRig{rig: &rig{t: t}, port: port, mac: 1}
	c.engine = c.newEngine(0)
	c.start(c.engine, 6, change...)
	t.Cleanup(func() {
		_ = c.fw.Close()
		if err := c.engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *carryRig) newEngine(hush time.Duration) engine.Engine {
	c.t.Helper()
	e, err := engine.New(engine.Config{
		Port: c.port, MAC: []byte{2, 0, 0, 0, 0, c.mac}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.1/24")}, Hush: hush,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return e
}

// replace ends firmware and engine and starts new ones over the same host
// memory.
func (c *carryRig) replace() {
	c.t.Helper()
	if err := c.fw.Close(); err != nil {
		c.t.Error(err)
	}
	if err := c.engine.Close(); err != nil {
		c.t.Error(err)
	}
	c.engine = c.newEngine(time.Minute)
	c.fw = firmware.New(firmware.Config{Chip: c.chip, Engine: c.engine, Generation: 8, MTU: 1500})
	c.fw.Run()
	c.Host = firmwaretest.NewHost(c.fw, c.chip, 0, 6)
	if s := c.Create(); s != abi.StatusOK {
		c.t.Fatalf("create: %v", s)
	}
}

func (c *carryRig) dial(tuples []byte, n int) uint64 {
	c.t.Helper()
	f := c.control(abi.TypeConnect, n+1, appendTarget(tuples, abi.Target{
		Protocol: 6, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:0"), Remote: netip.MustParseAddrPort("10.0.2.2:7"),
	}))
	c.post(f)
	got := c.next()
	if got.Type != abi.TypeCompletion || got.Aux != 0 {
		c.t.Fatalf("connect: %+v", got)
	}
	return got.Conn
}

// restore asks for a connection to go on.
func (c *carryRig) restore(record []byte) abi.Fields {
	c.t.Helper()
	f := c.control(abi.TypeConnect, 1, abi.AppendTuple(nil, true, 0x0004, record))
	c.post(f)
	return c.next()
}

// An orderly stop in the middle of a transfer: the record says what the peer
// has, and in the firmware that follows the transfer goes on.
func TestCarryOver(t *testing.T) {
	for _, c := range []struct {
		name string
		slow bool // the host posts no receive buffers towards the end
		pipe enginetest.PipeOptions
		mac  byte // the last of the adapter that takes over
	}{
		{name: "swift"},
		{name: "slow", slow: true},
		{name: "other adapter", mac: 3},
		{name: "lossy", pipe: enginetest.PipeOptions{Loss: 0.01, Seed: 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pa, pb := enginetest.Pipe(c.pipe)
			t.Cleanup(func() { _, _ = pa.Close(), pb.Close() })
			peer := newEchoPeer(t, pb)
			r := newCarryRig(t, pa, func(f *firmware.Config) {
				if c.pipe.Loss == 0 {
					f.Clock = newClock().read // acknowledgements have all the time
				}
			})
			const total = 3 << 20
			u := newUser(r.rig, total)
			u.id = r.dial(abi.AppendSetScalar(nil, 0x025b, 1), 1) // CARRY_OVER
			report := r.reportBuffer(2<<20, 0)
			r.post(report)
			u.until("half of the transfer", u.pump, func() bool { return u.in > total/2 })
			if c.slow {
				u.greedy = false
				u.until("bytes that wait", u.pump, func() bool {
					return len(u.buffers) == 0 && binary.LittleEndian.Uint64(r.attributeOf(u, 0x0284))-uint64(u.in) > 10_000
				})
			}
			r.fw.Stop()
			u.until("the stop", u.take, r.fw.Stopped)
			u.take()
			u.forgetUntaken()
			if len(u.sends)+len(u.buffers) != 0 || len(u.reports) != 1 {
				t.Fatalf("%d sends and %d buffers are not answered, %d reports", len(u.sends), len(u.buffers), len(u.reports))
			}
			want := abi.Fields{Type: 23, Flags: abi.FlagFinal | abi.FlagReport, Tag: report.Tag, Base: report.Base, Length: u.reports[0].Length}
			if u.reports[0] != want {
				t.Fatalf("report %+v, want %+v", u.reports[0], want)
			}
			b := r.bytes(report)[:want.Length]
			record := b[64:256]
			got := parseRecord(t, record)
			if head, ok := abi.ParseReport(b[:64]); !ok || head.Type != 23 || head.Conn != u.id || head.Tag != 0 {
				t.Errorf("record %+v", head)
			}
			have := peer.received()
			if got.Conn != u.id || got.State != 4 || got.Flags != 1 || got.Acked != uint64(u.acked) || got.Delivered != uint64(u.in) ||
				got.Received != got.Delivered+uint64(got.Unread) || int(want.Length) != 256+(int(got.Unread)+63)/64*64 {
				t.Errorf("%d acknowledged, %d in: %+v", u.acked, u.in, got)
			}
			if have < got.Acked || have > got.Sent || got.Sent > got.Accepted {
				t.Errorf("the peer has %d bytes: %+v", have, got)
			}
			if c.slow && got.Unread == 0 {
				t.Errorf("%d bytes found no buffer", got.Unread)
			}
			if c.pipe.Loss == 0 && have != got.Acked {
				// Nothing is lost on the way, and acknowledgements are waited for.
				t.Errorf("the peer has %d bytes, %d are acknowledged", have, got.Acked)
			}
			u.check(b[256 : 256+got.Unread])
			r.wantCounter(abi.CounterCarriedOut, 1)
			r.wantCounter(abi.CounterCarryRefused, 0)
			r.wantCounter(abi.CounterConnections, 0)

			if c.mac != 0 {
				r.mac = c.mac
			}
			r.replace()
			done := r.restore(record)
			if done.Type != abi.TypeCompletion || done.Aux != 0 || done.Base != u.id || done.Conn>>48 != 8 || done.Length != uint32(got.Local.Port) {
				t.Fatalf("restored: %+v", done)
			}
			r.wantCounter(abi.CounterCarriedIn, 1)
			old := u.id
			u.id, u.out, u.greedy, u.cancelled = done.Conn, u.acked, true, 0
			now := parseRecord(t, r.attributeOf(u, 0x028a))
			if now.Conn != u.id || now.Acked != got.Acked || now.Received < got.Received || now.Delivered != got.Received || now.Sent < got.Sent {
				t.Errorf("was %+v\nis %+v", got, now)
			}
			u.until("the rest of the transfer", u.pump, func() bool { return u.in == total && u.acked == total })
			now = parseRecord(t, r.attributeOf(u, 0x028a))
			if now.Acked != total || now.Received != total || now.Delivered != total || now.Accepted != total {
				t.Errorf("at the end %+v", now)
			}
			if n := peer.engine.Stats().ResetsReceived; n != 0 {
				t.Errorf("the peer got %d resets", n)
			}
			if again := r.restoreWith(u, record); again.Aux != 8 {
				t.Errorf("%#x restored twice: %+v", old, again)
			}
		})
	}
}

// attributeOf gets an attribute of the connection while it transfers.
func (c *carryRig) attributeOf(u *user, a abi.Attribute) []byte {
	c.t.Helper()
	f := c.control(abi.TypeConnectionAttr, 1, abi.AppendGet(nil, a, 192))
	f.Conn = u.id
	c.untilTag(u, f)
	_, n := abi.TupleResult(c.Chip.Bytes(f.Base, 8))
	return c.Chip.Bytes(f.Base+8, int(n))
}

func (c *carryRig) restoreWith(u *user, record []byte) abi.Fields {
	c.t.Helper()
	return c.untilTag(u, c.control(abi.TypeConnect, 1, abi.AppendTuple(nil, true, 0x0004, record)))
}

// untilTag posts a request and returns its response; others go to the user.
func (c *carryRig) untilTag(u *user, f abi.Fields) abi.Fields {
	c.t.Helper()
	c.post(f)
	for {
		got := c.next()
		if got.Tag == f.Tag {
			return got
		}
		u.one(got)
	}
}

// A firmware that dies in the middle of a transfer: what the host knows bounds
// what the peer has, and the connection ends by a status and a reset.
func TestCrash(t *testing.T) {
	pa, pb := enginetest.Pipe(enginetest.PipeOptions{})
	t.Cleanup(func() { _, _ = pa.Close(), pb.Close() })
	peer := newEchoPeer(t, pb)
	r := newCarryRig(t, pa)
	const total = 3 << 20
	u := newUser(r.rig, total)
	u.id = r.dial(abi.AppendSetScalar(nil, 0x025b, 1), 1) // CARRY_OVER
	u.until("a third of the transfer", u.pump, func() bool { return u.in > total/3 })
	last := append([]byte(nil), r.attributeOf(u, 0x028a)...)
	u.until("half of the transfer", u.pump, func() bool { return u.in > total/2 })
	// Nothing of the engine reaches the wire any more.
	if err := pa.Close(); err != nil {
		t.Fatal(err)
	}
	u.take()
	known := parseRecord(t, last)
	low, high := max(uint64(u.acked), known.Acked), uint64(u.out)
	if have := peer.received(); have < low || have > high || known.Acked > uint64(u.acked) {
		t.Errorf("the peer has %d bytes, the host knows of %d to %d", have, low, high)
	}
	r.replace()
	if got := r.restore(last); got.Aux != 14 || got.Conn != 0 || got.Base != u.id || got.Flags != abi.FlagFinal {
		t.Errorf("restored from a record that is not exact: %+v", got)
	}
	r.wantCounter(abi.CounterCarryRefused, 1)
	select {
	case err := <-peer.done:
		if !errors.Is(err, engine.ErrReset) {
			t.Errorf("the peer's connection ended with %v", err)
		}
		peer.done <- nil
	case <-time.After(firmwaretest.Patience):
		t.Error("the peer's connection did not end")
	}
}

// What a stop cannot hand over stays, and is reset with its queue.
func TestCarryOverRefused(t *testing.T) {
	for _, c := range []struct {
		name    string
		reports []int
		bad     bool // the first of them cannot be written
		prepare func(r *carryRig, id uint64)
		out     uint64
	}{
		{name: "no report buffer"},
		{name: "small report buffer", reports: []int{256}},
		{name: "small report buffer behind a bad one", reports: []int{4096, 512}, bad: true},
		{name: "report buffer behind a bad one", reports: []int{4096, 256 + 1024}, bad: true, out: 1},
		{name: "sending ended", reports: []int{4096}, out: 1, prepare: func(r *carryRig, id uint64) {
			r.post(abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: abi.TerminateSend})
			r.next()
		}},
		{name: "receiving ended", reports: []int{4096}, out: 1, prepare: func(r *carryRig, id uint64) {
			r.post(abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: abi.TerminateReceive})
			r.next()
		}},
		{name: "none of them", reports: []int{100 << 10}, out: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			pa, pb := enginetest.Pipe(enginetest.PipeOptions{})
			t.Cleanup(func() { _, _ = pa.Close(), pb.Close() })
			peer := newEchoPeer(t, pb)
			r := newCarryRig(t, pa)
			id := r.dial(abi.AppendSetScalar(nil, 0x025b, 1), 1)
			for i, n := range c.reports {
				f := r.reportBuffer(n, 0)
				if c.bad && i == 0 {
					r.Chip.ReadOnly(f.Base, 1)
				}
				r.post(f)
			}
			guard := r.Chip.Bytes(r.Chip.Alloc(4096, 1), 4096) // behind the last
			send := r.buffer(abi.TypeBufferSend, id, 1000)
			r.post(send)
			r.expect(sendDone(send, 0, 1000))
			if err := r.Wait("the echo", func() bool {
				f := r.control(abi.TypeConnectionAttr, 1, abi.AppendGet(nil, 0x0284, 8))
				f.Conn = id
				_, b := r.attributeRequest(f)
				return binary.LittleEndian.Uint64(b[8:]) == 1000
			}); err != nil {
				t.Fatal(err)
			}
			if c.prepare != nil {
				c.prepare(r, id)
			}
			r.fw.Stop()
			if err := r.Wait("the stop", r.fw.Stopped); err != nil {
				t.Fatal(err)
			}
			r.wantCounter(abi.CounterCarriedOut, c.out)
			r.wantCounter(abi.CounterCarryRefused, 1-c.out)
			if !bytes.Equal(guard, make([]byte, len(guard))) {
				t.Error("the adapter wrote beyond the report buffers")
			}
			for i, f := range r.Pending() {
				if c.bad && i == 0 {
					if f.Type != abi.TypeBufferDone || f.Aux != 39 {
						t.Errorf("bad report buffer: %+v", f)
					}
					continue
				}
				if refused := f.Type == abi.TypeBufferDone && f.Aux == 2; refused == (c.out == 1) {
					t.Errorf("report buffer: %+v", f)
				}
			}
			if c.name == "sending ended" {
				return // the peer has closed, too
			}
			if c.out == 0 && !t.Failed() {
				r.fw.Command(0, abi.QueueDestroy, r.Config)
				if err := r.State(abi.QueueDisabled); err != nil {
					t.Fatal(err)
				}
				if err := <-peer.done; !errors.Is(err, engine.ErrReset) {
					t.Errorf("the peer's connection ended with %v", err)
				}
				peer.done <- nil
			}
		})
	}
}
