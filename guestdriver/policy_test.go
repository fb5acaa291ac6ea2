// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"strings"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

// controls copies the control buffer of each attribute control as the adapter gets it.
func controls(f *guestdrivertest.Fake) <-chan []byte {
	ch := make(chan []byte, 16)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type == abi.TypeConnectionAttr {
			b := make([]byte, r.Length)
			f.Peek(r.Base, b)
			ch <- b
		}
		return false
	})
	return ch
}

var (
	sendPolicy = guestdriver.SendPolicy{
		Delay: guestdriver.DelayWindow | guestdriver.DelayClass, Count: 5, Bytes: 70000,
		Age: 3 * time.Millisecond, Dynamic: true, ShortenASAP: true, Keep: true,
		Complete: guestdriver.PointHanded,
	}
	receivePolicy = guestdriver.ReceivePolicy{
		Time: 2 * time.Microsecond, Bytes: 65536, Dynamic: guestdriver.NotifyPosts | guestdriver.NotifyAmounts,
		Max: time.Second, Expedited: true, Combine: true, TransferSize: 8192, Gather: 9000,
	}
	schedule  = guestdriver.Schedule{Priority: 6, Class: 200, Starvation: time.Millisecond}
	placement = guestdriver.Placement{Stores: guestdriver.StoresAdaptive, Budget: 4096}
)

// TestPolicyTuples: the attributes that a policy is made of go in one request,
// each with its number.
func TestPolicyTuples(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	seen := controls(f)
	for _, k := range []struct {
		name string
		set  func() error
		want []byte
	}{
		{"send", func() error { return c.SetSendPolicy(sendPolicy) }, []byte{
			0x20, 0x82, 0, 0, 8, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, // set DELAY_CRITERIA, 8 bytes: cwnd, class
			0x21, 0x82, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // DELAY_COUNT
			0x22, 0x82, 0, 0, 8, 0, 0, 0, 0x70, 0x11, 1, 0, 0, 0, 0, 0, // DELAY_BYTES
			0x23, 0x82, 0, 0, 8, 0, 0, 0, 0xc0, 0xc6, 0x2d, 0, 0, 0, 0, 0, // DELAY_AGE, ns
			0x24, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // DELAY_DYNAMIC
			0x25, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // ASAP_MODE
			0x29, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // KEEP_SENDS
			0x15, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // COMPLETION_POINT: handed to the network
		}},
		{"receive", func() error { return c.SetReceivePolicy(receivePolicy) }, []byte{
			0x27, 0x82, 0, 0, 8, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, // LINK_TRANSFER_SIZE
			0x28, 0x82, 0, 0, 8, 0, 0, 0, 0x28, 0x23, 0, 0, 0, 0, 0, 0, // GATHER_THRESHOLD
			0x40, 0x82, 0, 0, 8, 0, 0, 0, 0xd0, 7, 0, 0, 0, 0, 0, 0, // NOTIFY_TIME, ns
			0x41, 0x82, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, // NOTIFY_BYTES
			0x42, 0x82, 0, 0, 8, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, // NOTIFY_DYNAMIC: posts, amounts
			0x43, 0x82, 0, 0, 8, 0, 0, 0, 0, 0xca, 0x9a, 0x3b, 0, 0, 0, 0, // NOTIFY_MAX, ns
			0x44, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // EXPEDITED
			0x45, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // COMBINE
		}},
		{"schedule", func() error { return c.SetSchedule(schedule) }, []byte{
			0x13, 0x82, 0, 0, 8, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, // PRIORITY
			0x14, 0x82, 0, 0, 8, 0, 0, 0, 200, 0, 0, 0, 0, 0, 0, 0, // QOS_CLASS
			0x26, 0x82, 0, 0, 8, 0, 0, 0, 0x40, 0x42, 0x0f, 0, 0, 0, 0, 0, // STARVATION, ns
		}},
		{"placement", func() error { return c.SetPlacement(placement) }, []byte{
			0x60, 0x82, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, // PLACEMENT
			0x61, 0x82, 0, 0, 8, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, // PLACEMENT_BUDGET
		}},
	} {
		if err := k.set(); err != nil {
			t.Errorf("%s: %v", k.name, err)
			continue
		}
		if got := <-seen; !bytes.Equal(got, k.want) {
			t.Errorf("%s: set by\n% x, want\n% x", k.name, got, k.want)
		}
	}
	f.Intercept(nil)
	if p, err := c.SendPolicy(); err != nil || p != sendPolicy {
		t.Errorf("send policy %+v, %v", p, err)
	}
	if p, err := c.ReceivePolicy(); err != nil || p != receivePolicy {
		t.Errorf("receive policy %+v, %v", p, err)
	}
	if p, err := c.Schedule(); err != nil || p != schedule {
		t.Errorf("schedule %+v, %v", p, err)
	}
	if p, err := c.Placement(); err != nil || p != placement {
		t.Errorf("placement %+v, %v", p, err)
	}
	if p, err := far.Schedule(); err != nil || p != (guestdriver.Schedule{Priority: 3, Starvation: 10 * time.Millisecond}) {
		t.Errorf("schedule of the other end %+v, %v", p, err)
	}
}

// TestPolicyRefused: an error names what was refused, and only that.
func TestPolicyRefused(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	c, far := pair(t, a)
	defer far.Close()
	p := sendPolicy
	p.Count, p.Delay = 0, 1<<5
	err := c.SetSendPolicy(p)
	if !errors.Is(err, abi.StatusBadValue) || !strings.Contains(err.Error(), "DELAY_COUNT") ||
		!strings.Contains(err.Error(), "value 32: guestdriver: set attribute DELAY_CRITERIA 0x0220") || strings.Contains(err.Error(), "DELAY_AGE") {
		t.Errorf("refused by the adapter: %v", err)
	}
	got, err := c.SendPolicy()
	if p.Count, p.Delay = 32, 0; err != nil || got != p {
		t.Errorf("after that %+v, %v, want %+v", got, err, p)
	}

	// What is no number of the adapter's does not get there.
	seen := controls(f)
	r := receivePolicy
	r.Max, r.Bytes = -1, -5
	if err := c.SetReceivePolicy(r); !errors.Is(err, abi.StatusBadValue) || !strings.Contains(err.Error(), "NOTIFY_MAX") || !strings.Contains(err.Error(), "value -5") {
		t.Errorf("negative: %v", err)
	}
	if len(seen) != 0 {
		t.Errorf("the adapter was asked: % x", <-seen)
	}

	// Nor is everything that the adapter says one of the driver's.
	for attr, name := range map[uint32]string{0x0240: "NOTIFY_TIME", 0x0241: "NOTIFY_BYTES", 0x0242: "NOTIFY_DYNAMIC", 0x0245: "COMBINE"} {
		forge(f, func(tuple []byte) {
			if uint32(tuple[0])|uint32(tuple[1])<<8 == attr {
				copy(tuple[8:], "\xff\xff\xff\xff\xff\xff\xff\xff")
			}
		})
		if _, err := c.ReceivePolicy(); !errors.Is(err, abi.StatusBadValue) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s of 2^64-1: %v", name, err)
		}
	}
	forge(f, func(tuple []byte) { tuple[4] = 7 })
	if _, err := c.Schedule(); !errors.Is(err, abi.StatusBadLength) || a.Stats().BadLengths != 3 {
		t.Errorf("numbers of 7 bytes: %v, %d counted", err, a.Stats().BadLengths)
	}
	f.Intercept(nil)
	c.Close()
	if err := c.SetSchedule(schedule); !errors.Is(err, net.ErrClosed) {
		t.Errorf("of a closed connection: %v", err)
	}
	if _, err := c.Schedule(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("of a closed connection: %v", err)
	}
}

// forge has the fake answer attribute controls OK, each tuple as change makes it.
func forge(f *guestdrivertest.Fake, change func(tuple []byte)) {
	f.Intercept(func(q int, r abi.Fields) bool {
		if r.Type != abi.TypeConnectionAttr {
			return false
		}
		b := make([]byte, r.Length)
		f.Peek(r.Base, b)
		for at := 0; at < len(b); at += 16 {
			change(b[at : at+16])
		}
		f.Poke(r.Base, b)
		go f.Inject(q, guestdrivertest.Answer(r, abi.TypeConnectionAttrs, abi.StatusOK))
		return true
	})
}

// TestPolicyDefaults: connections that are dialed, or arrive at a listener made
// afterwards, have the adapter's policies, also after a reset, and those that are
// there stay as they are.
func TestPolicyDefaults(t *testing.T) {
	ctx := context.Background()
	a, f := open(t, guestdriver.Options{})
	before, far := pair(t, a)
	defer before.Close()
	defer far.Close()
	was, err := a.ReceivePolicy(ctx)
	if want := (guestdriver.ReceivePolicy{Max: time.Millisecond, TransferSize: 64 << 10, Gather: 128 << 10}); err != nil || was != want {
		t.Fatalf("defaults %+v, %v", was, err)
	}
	for _, err := range []error{a.SetReceivePolicy(ctx, receivePolicy), a.SetSendPolicy(ctx, sendPolicy), a.SetSchedule(ctx, schedule), a.SetPlacement(ctx, placement)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := a.SetSchedule(ctx, guestdriver.Schedule{Priority: 8}); !errors.Is(err, abi.StatusBadValue) {
		t.Errorf("priority 8: %v", err)
	}
	want := schedule
	want.Class, want.Starvation = 0, 0 // those were set
	old, err := a.Listen("tcp", "10.0.2.15:0")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	look := func(when string, c *guestdriver.Conn) {
		t.Helper()
		r, err1 := c.ReceivePolicy()
		s, err2 := c.SendPolicy()
		d, err3 := c.Schedule()
		if err := errors.Join(err1, err2, err3); err != nil || r != receivePolicy || s != sendPolicy || d != want {
			t.Errorf("%s: %+v, %+v, %+v, %v", when, r, s, d, err)
		}
	}
	dial := func(to string) (*guestdriver.Conn, *guestdriver.Conn) {
		t.Helper()
		c, err := a.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		n, err := old.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		return c.(*guestdriver.Conn), n.(*guestdriver.Conn)
	}
	near, arrived := dial(old.Addr().String())
	look("dialed", near)
	look("accepted", arrived)
	if p, err := before.ReceivePolicy(); err != nil || p != was {
		t.Errorf("one that was there before: %+v, %v", p, err)
	}

	// The listener has what it began with.
	if err := a.SetReceivePolicy(ctx, was); err != nil {
		t.Fatal(err)
	}
	restarts := a.Stats().Resets
	f.Restart()
	for until := time.Now().Add(limit); a.Stats().Resets == restarts && time.Now().Before(until); {
		if _, err := a.MTU(ctx); err != nil && !errors.Is(err, guestdriver.ErrReset) {
			t.Fatal(err)
		}
	}
	// It is open again by itself: until then nobody answers there.
	for until := time.Now().Add(limit); ; {
		c, err := a.Dial("tcp", old.Addr().String())
		if err == nil {
			c.Close()
			n, err := old.Accept()
			if err != nil {
				t.Fatal(err)
			}
			n.Close()
			break
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
	near, arrived = dial(old.Addr().String())
	look("accepted after a reset", arrived)
	if p, err := near.ReceivePolicy(); err != nil || p != was {
		t.Errorf("dialed after a reset: %+v, %v", p, err)
	}
	if p, err := a.Placement(ctx); err != nil || p != placement {
		t.Errorf("the adapter's placement after a reset: %+v, %v", p, err)
	}
	if p, err := a.SendPolicy(ctx); err != nil || p != sendPolicy {
		t.Errorf("the adapter's after a reset: %+v, %v", p, err)
	}
}

// TestSendOptions: what the adapter is told of a send, and what the debug mode
// finds of a lie.
func TestSendOptions(t *testing.T) {
	var found mistakes
	a, f := open(t, guestdriver.Options{Debug: found.add})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	seen := make(chan abi.Fields, 4)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type == abi.TypeBufferSend {
			seen <- r
		}
		return false
	})
	m := region(t, a, 1000)
	b := part(t, m, 0, 1000)
	q := guestdriver.NewCompletionQueue()
	for _, o := range []guestdriver.SendOptions{{}, {ASAP: true}, {Unchanged: true}, {ASAP: true, Unchanged: true}} {
		if err := c.SendBufferWith(b, o, q); err != nil {
			t.Fatal(err)
		}
		if r := <-seen; r.ASAP != o.ASAP || r.Modify == o.Unchanged || r.Length != 1000 {
			t.Errorf("%+v: %+v", o, r)
		}
		if d := next(t, q); d.Err != nil || d.N != 1000 || !d.Final {
			t.Errorf("%+v: %+v", o, d)
		}
	}
	found.none(t)
	m.Bytes()[999]++
	if err := c.SendBufferWith(b, guestdriver.SendOptions{Unchanged: true}, q); err != nil {
		t.Fatal(err)
	}
	next(t, q)
	if e := found.one(t); e.Mistake != "send of a buffer as unchanged that was changed" || !strings.Contains(e.Since, "SendBufferWith") {
		t.Errorf("of a lie: %v", e)
	}
}

// A bulk receiver trades latency for fewer responses: bytes wait until there are 64
// KiB of them, 2 ms at most, and what fills several buffers is reported at once.
func ExampleConn_SetReceivePolicy() {
	ctx := context.Background()
	a, err := guestdriver.Open(ctx, guestdrivertest.New(), guestdriver.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	c, err := a.Dial("tcp", "10.0.2.2:7")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	conn := c.(*guestdriver.Conn)
	p, err := conn.ReceivePolicy()
	if err != nil {
		log.Fatal(err)
	}
	p.Bytes, p.Max, p.Combine = 64<<10, 2*time.Millisecond, true
	if err := conn.SetReceivePolicy(p); err != nil {
		log.Fatal(err)
	}

	// The adapter's own is that of connections to come.
	usual, err := a.ReceivePolicy(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(usual.Bytes, usual.Max, usual.Combine)
	// Output: 0 1ms false
}
