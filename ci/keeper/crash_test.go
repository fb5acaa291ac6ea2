// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"toebox/ci/conformance"
	"toebox/ci/rig/rigtest"
	"toebox/guestdriver"
	"toebox/vdev/device"
	"toebox/vfio-user/keeper"
)

// TestCrash kills the process of an adapter in the middle of a transfer, whose peer is
// outside it. The peer has got at least what was completed and at most what was posted,
// exactly; what the adapter had acknowledged to it and not delivered ends with an error
// on both sides; and the adapter is there again for others.
func TestCrash(t *testing.T) {
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := folder(t)
	wire := filepath.Join(dir, "wire")
	_, peerBus := rigtest.Device(t, device.Config{Port: newOutlet(t, wire), Lease: lease("10.0.2.2/24"), Seed: 2})
	other := rigtest.Driver(t, peerBus, guestdriver.Options{})
	l, err := other.Listen("tcp4", ":9")
	check(err)
	ready := make(chan int, 2)
	k, a := kept(t, dir, keeper.Config{Command: adapterOn(t, wire), Event: func(e keeper.Event) {
		if e.Kind == keeper.EventReady {
			ready <- e.PID
		}
	}})
	within := func(c net.Conn, err error) *guestdriver.Conn {
		t.Helper()
		check(err)
		t.Cleanup(func() { c.Close() })
		check(c.SetDeadline(time.Now().Add(limit)))
		return c.(*guestdriver.Conn)
	}
	c := within(a.Dial("tcp", "10.0.2.2:9"))
	peer := within(l.Accept())

	// What the peer sends is acknowledged, and stays in the adapter.
	c.SetReadAhead(false)
	q := guestdriver.NewCompletionQueue()
	down, err := other.Alloc(20_000)
	check(err)
	b, err := down.Buffer(0, 20_000)
	check(err)
	check(peer.SendBuffer(b, q))
	if d, err := q.Next(t.Context()); err != nil || d.Err != nil || d.N != 20_000 {
		t.Fatalf("what the peer sends: %+v, %v", d, err)
	}

	const part, atOnce, least = 64 << 10, 8, 2 << 20
	up, err := a.Alloc(part * atOnce)
	check(err)
	posted, completed, out := 0, 0, 0
	post := func(b *guestdriver.Buffer) {
		t.Helper()
		conformance.Payload(b.Bytes(), 1, int64(posted))
		check(c.SendBuffer(b, q))
		posted += part
		out++
	}
	type outcome struct {
		n   int
		err error
	}
	got := make(chan outcome, 1)
	go func() {
		var o outcome
		p, want := make([]byte, part), make([]byte, part)
		for o.err == nil {
			var n int
			n, o.err = peer.Read(p)
			if conformance.Payload(want[:n], 1, int64(o.n)); !bytes.Equal(p[:n], want[:n]) {
				o.err = errors.New("other bytes than were sent")
			}
			o.n += n
		}
		got <- o
	}()
	for i := range atOnce {
		b, err := up.Buffer(i*part, part)
		check(err)
		post(b)
	}
	for killed := false; out > 0; out-- {
		d, err := q.Next(t.Context())
		check(err)
		switch {
		case d.Err == nil && d.N == part:
			completed += part
		case !killed || !errors.Is(d.Err, guestdriver.ErrReset):
			t.Fatalf("completion %+v", d)
		}
		switch {
		case killed:
		case completed < least:
			post(d.Buffer)
		default:
			killed = true
			check(syscall.Kill(<-ready, syscall.SIGKILL))
		}
	}
	if n, err := c.Read(make([]byte, part)); n != 0 || !errors.Is(err, guestdriver.ErrReset) {
		t.Errorf("read of what was not delivered: %d bytes, %v", n, err)
	}
	// The peer learns of it when it sends.
	for err = nil; err == nil; {
		_, err = peer.Write([]byte{1})
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		t.Errorf("the peer writes: %v", err)
	}
	if o := <-got; o.n < completed || o.n > posted || !errors.Is(o.err, syscall.ECONNRESET) {
		t.Errorf("the peer got %d bytes, of %d completed and %d posted, then %v", o.n, completed, posted, o.err)
	}
	check(up.Deregister())
	check(down.Deregister())
	if s := a.Stats(); s.CarriedOver != 0 || s.Resets != 1 || k.Stats().Starts != 2 {
		t.Errorf("%d carried over, %d restarts, %d processes", s.CarriedOver, s.Resets, k.Stats().Starts)
	}
	go rigtest.Echo(l)
	rigtest.Transfers(t, []net.Conn{within(a.Dial("tcp", "10.0.2.2:9"))}, part, 1, nil)
}
