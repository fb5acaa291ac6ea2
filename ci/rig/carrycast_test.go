// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"testing"

	"toebox/guestdriver"
)

// TestCarryOverBroadcast: orderly stops while buffers are on their way to a group
// of connections of two queue pairs. Each gets each of them once, in order, and the
// memory comes back.
func TestCarryOverBroadcast(t *testing.T) {
	const conns, casts, size, stops = 6, 12, 200_000, 3
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := newCarrier(t, 2)
	echo := echoServer(t)
	g := c.a.NewSendGroup()
	m, err := c.a.Alloc(casts * size)
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Bytes() {
		m.Bytes()[i] = byte(i ^ i>>8 ^ i>>16)
	}
	type echoed struct {
		sum [sha256.Size]byte
		err error
	}
	ends := make(chan echoed, conns)
	for range conns {
		nc, err := c.a.Dial("tcp", "10.0.2.2:"+echo)
		conn := within(t, nc, err)
		if err := g.Add(conn); err != nil {
			t.Fatal(err)
		}
		go func() {
			h := sha256.New()
			_, err := io.CopyN(h, struct{ io.Reader }{conn}, casts*size)
			ends <- echoed{[sha256.Size]byte(h.Sum(nil)), err}
		}()
	}
	q := guestdriver.NewCompletionQueue()
	stopped := 0
	want := sha256.Sum256(bytes.Clone(m.Bytes()))
	for i := range casts {
		b, err := m.Buffer(i*size, size)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Send(b, q); err != nil {
			t.Fatal(err)
		}
		if i%(casts/stops) == 1 {
			c.stop(i > 1) // then new firmware
			stopped++
			c.until("all to go on", func() bool {
				s := c.a.Stats()
				return s.CarriedOver+s.CarryFailed >= uint64(conns*stopped)
			})
		}
	}
	told := map[*guestdriver.Buffer]int{}
	for range conns * casts {
		d, err := q.Next(ctx)
		if err != nil {
			t.Fatalf("%v: %+v", err, c.a.Stats())
		}
		told[d.Buffer]++
		if d.Op != guestdriver.OpBroadcast || d.Err != nil || d.N != size || d.Final != (told[d.Buffer] == conns) {
			t.Errorf("completion %+v", d)
		}
	}
	for range conns {
		if e := <-ends; e.err != nil || e.sum != want {
			t.Errorf("other bytes came back, %v", e.err)
		}
	}
	if err := m.Deregister(); err != nil {
		t.Error(err)
	}
	if s := c.a.Stats(); s.CarriedOver != conns*stops || s.CarryFailed != 0 || s.Broadcasts != casts || s.LostBuffers != 0 {
		t.Errorf("%+v", s)
	}
}
