// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"net/netip"
	"reflect"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Flow is a TCP connection as it is on the wire at one moment. Sequence
// numbers and time stamps are those that the peer sees.
type Flow struct {
	State         State
	Local, Remote netip.AddrPort

	// Byte counts since the connection was opened, of one moment: Acked <=
	// Sent <= Queued, Delivered <= Received.
	Queued, Sent, Acked, Received, Delivered uint64

	SendSequence    uint32 // of the first byte that is not acknowledged
	ReceiveSequence uint32 // of the next byte that is expected
	SendWindow      uint32 // bytes that the peer takes from SendSequence on
	ReceiveWindow   uint32 // bytes that the peer may send from ReceiveSequence on
	SendScale       uint8  // window scaling, RFC 7323
	ReceiveScale    uint8
	MSS             uint32 // payload of a segment, without options
	Payload         uint32 // the same less the room for options
	SACK            bool
	Scaling         bool // with a scale that is not 0
	Timestamps      bool
	Time            uint32 // our time stamp now
	RecentTime      uint32 // the peer's last one

	RTT, RTO time.Duration
	Timers   Timers
}

// Timers is a set of timers in force, numbered as in SPEC.md §7.1.
type Timers uint32

// Timers.
const (
	TimerRetransmit Timers = 1 << iota
	TimerKeepAlive
	TimerTimeWait
	TimerPersist
)

// Tracker is implemented by endpoints that can tell their Flow.
type Tracker interface {
	// Flow returns ErrNotConnected before the handshake and after the end.
	Flow() (Flow, error)
}

// flowReader reads what the stack keeps to itself about a connection. It is
// used with the endpoint's lock held.
type flowReader struct{ snd, rcv, segments reflect.Value }

// timerEnabled is the stack's timerStateEnabled.
const timerEnabled = 2

func readFlow(e *tcp.Endpoint) flowReader {
	v := reflect.ValueOf(e).Elem()
	return flowReader{v.FieldByName("snd"), v.FieldByName("rcv"), v.FieldByName("segmentQueue")}
}

// ready reports whether there are a sender and a receiver to read.
func (r flowReader) ready() bool {
	for _, v := range []reflect.Value{r.snd, r.rcv} {
		if v.Kind() != reflect.Pointer || v.IsNil() {
			return false
		}
	}
	return true
}

func number(v reflect.Value) uint64 {
	switch {
	case v.CanUint():
		return v.Uint()
	case v.CanInt():
		return uint64(max(v.Int(), 0))
	}
	return 0
}

func (r flowReader) send(name string) uint64    { return number(r.snd.Elem().FieldByName(name)) }
func (r flowReader) receive(name string) uint64 { return number(r.rcv.Elem().FieldByName(name)) }

func (r flowReader) timer(name string) bool {
	v := r.snd.Elem().FieldByName(name)
	return v.Kind() == reflect.Struct && number(v.FieldByName("state")) == timerEnabled
}

// persisting reports whether the sender probes a window of 0.
func (r flowReader) persisting() bool {
	v := r.snd.Elem().FieldByName("zeroWindowProbing")
	return v.Kind() == reflect.Bool && v.Bool()
}

// idle reports whether no arrived segment waits to be looked at. No more may
// arrive meanwhile.
func (r flowReader) idle() bool { return r.segments.FieldByName("list").FieldByName("head").IsNil() }

// checkFlowFields fails when another version of the stack keeps elsewhere what
// a flowReader reads.
func checkFlowFields() error {
	is := func(t reflect.Type, k reflect.Kind, path ...string) bool {
		for _, name := range path {
			for t.Kind() == reflect.Pointer {
				t = t.Elem()
			}
			if t.Kind() != reflect.Struct {
				return false
			}
			f, ok := t.FieldByName(name)
			if !ok {
				return false
			}
			t = f.Type
		}
		return t.Kind() == k
	}
	e := reflect.TypeFor[tcp.Endpoint]()
	ok := is(e, reflect.Bool, "snd", "zeroWindowProbing") && is(e, reflect.Int, "snd", "resendTimer", "state") &&
		is(e, reflect.Int, "snd", "MaxPayloadSize") && is(e, reflect.Pointer, "segmentQueue", "list", "head")
	for _, name := range []string{"SndUna", "SndNxt", "SndWnd"} {
		ok = ok && is(e, reflect.Uint32, "snd", name)
	}
	for _, name := range []string{"RcvNxt", "RcvAcc"} {
		ok = ok && is(e, reflect.Uint32, "rcv", name)
	}
	if ok && is(e, reflect.Uint8, "snd", "SndWndScale") && is(e, reflect.Uint8, "rcv", "RcvWndScale") {
		return nil
	}
	return errors.New("engine: this version of the TCP stack keeps a connection's state elsewhere")
}

// optionRoom is what the stack takes off the MSS for options: time stamps take
// 12 bytes, and as many SACK blocks as fit beside them in 40.
func optionRoom(timestamps, sack bool) uint32 {
	switch {
	case sack && timestamps:
		return 40
	case sack:
		return 36
	case timestamps:
		return 12
	}
	return 0
}

// Flow reads the connection's state under the stack's lock.
func (c *conn) Flow() (Flow, error) {
	i := c.Info()
	c.tcp.LockUser()
	defer c.tcp.UnlockUser()
	return c.flowLocked(&i)
}

// flowLocked needs the stack's lock of the endpoint. Of i it takes what does
// not change, or is an estimate.
func (c *conn) flowLocked(i *Info) (Flow, error) {
	r := readFlow(c.tcp)
	state := c.state()
	if !isConnected(state) || !r.ready() {
		return Flow{}, ErrNotConnected
	}
	e := c.tcp
	f := Flow{
		State: i.State, Local: i.Local, Remote: i.Remote,
		Queued: c.queued.Load(), Delivered: c.delivered.Load(),
		SendSequence: uint32(r.send("SndUna")), ReceiveSequence: uint32(r.receive("RcvNxt")),
		SendWindow: uint32(r.send("SndWnd")), SendScale: uint8(r.send("SndWndScale")), ReceiveScale: uint8(r.receive("RcvWndScale")),
		Payload: uint32(r.send("MaxPayloadSize")),
		SACK:    e.SACKPermitted, Timestamps: e.SendTSOk, RecentTime: e.RecentTS,
		Time: e.TSOffset.TSVal(c.engine.stack.Clock().NowMonotonic()),
		RTT:  i.RTT, RTO: i.RTO,
	}
	if x := c.gate.Load(); x != nil && x.joined.Load() {
		// What the peer sees, and agreed upon with another engine.
		f.SendSequence += x.shift
		f.Time += x.ticks
		f.ReceiveScale = x.flow.ReceiveScale
	}
	f.Scaling = f.SendScale > 0 || f.ReceiveScale > 0
	f.ReceiveWindow = uint32(r.receive("RcvAcc")) - f.ReceiveSequence
	f.MSS = f.Payload + optionRoom(f.Timestamps, f.SACK)
	flying := uint32(r.send("SndNxt")) - uint32(r.send("SndUna"))

	// The probe has told of all segments that were looked at before.
	c.ackMu.Lock()
	acked := c.acks.bytes
	f.Received = max(c.progress.received, c.delivered.Load())
	c.ackMu.Unlock()
	f.Acked = min(acked, f.Queued)
	f.Sent = min(acked+uint64(flying), f.Queued)

	switch {
	case state == tcp.StateTimeWait:
		f.Timers = TimerTimeWait
	case r.persisting():
		f.Timers = TimerPersist
	case r.timer("resendTimer"):
		f.Timers = TimerRetransmit
	case e.SocketOptions().GetKeepAlive() && flying == 0:
		f.Timers = TimerKeepAlive
	}
	return f, nil
}
