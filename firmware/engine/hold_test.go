// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// TestHeld counts what nobody has read, of streams and datagrams, however it goes.
func TestHeld(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	h := a.Engine.(engine.Holder)
	client, server := connected(t, a, b)
	held := func(p peer, what string, n int64) {
		t.Helper()
		p.ev.until(t, what, func() bool { return h.Held() == n })
	}
	send(t, client, make([]byte, 5000))
	held(server, "5000 bytes held", 5000)
	receive(t, server, 1234)
	held(server, "the rest of them", 3766)
	d := open(t, a.Engine, engine.UDP, false)
	if err := d.Bind(addrPort(a.v4, 53)); err != nil {
		t.Fatal(err)
	}
	from := open(t, b.Engine, engine.UDP, false)
	if err := from.Connect(addrPort(a.v4, 53)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := from.Write(100, fillFrom(make([]byte, 100))); err != nil {
			t.Fatal(err)
		}
	}
	d.ev.until(t, "two datagrams held", func() bool { return h.Held() == 3766+2*612 })
	if _, err := d.Read(1000, func(p []byte) int { return len(p) }); err != nil {
		t.Fatal(err)
	}
	held(d, "one datagram held", 3766+612)
	d.Close()
	held(d, "none after the endpoint's end", 3766)
	server.Abort()
	held(server, "nothing after the connection's end", 0)
}

// TestRefuse drops payload that there is no room for: what is held stays within
// the bound, but for what is under way, and no byte is lost when there is room.
func TestRefuse(t *testing.T) {
	const total, bound = 1 << 20, 100_000
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	h := a.Engine.(engine.Holder)
	h.Refuse(func(holding bool, _ engine.Sink) bool { return holding && h.Held() >= bound })
	client, server := connected(t, a, b)
	all := make([]byte, total)
	random := rand.NewChaCha8([32]byte{9})
	_, _ = random.Read(all)
	done := make(chan struct{})
	go func() {
		defer close(done)
		send(t, client, all)
	}()
	for over := newLimit(); a.Stats().SegmentsRefused == 0; yield() {
		if over() {
			t.Fatalf("no payload was refused, and %d bytes are held", h.Held())
		}
	}
	if n := h.Held(); n < bound || n > bound+4*65536 {
		t.Errorf("%d bytes are held, the bound is %d", n, bound)
	}
	if got := receive(t, server, total); !bytes.Equal(got, all) {
		t.Errorf("the stream differs")
	}
	<-done
}
