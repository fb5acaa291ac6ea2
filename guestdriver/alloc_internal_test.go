// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"runtime"
	"testing"

	"toebox/vdev/abi"
)

// paths are the ways of bytes through the driver, each as a step that is repeated: the
// test plays the adapter, so that what is measured is the driver alone.
var paths = []struct {
	name string
	of   func(testing.TB) (step func())
}{
	{"queue", queueStep},
	{"write and read", writeStep},
	{"send", sendStep},
	{"receive", receiveStep},
	{"read", readStep},
	{"segment", segmentStep},
}

// TestNoAllocations: in steady state nothing is allocated, on any path.
func TestNoAllocations(t *testing.T) {
	for _, p := range paths {
		if n := testing.AllocsPerRun(1000, p.of(t)); n != 0 {
			t.Errorf("%s: %v allocations", p.name, n)
		}
	}
}

// BenchmarkPath measures what the driver takes for one step of each path.
func BenchmarkPath(b *testing.B) {
	for _, p := range paths {
		b.Run(p.name, func(b *testing.B) {
			step := p.of(b)
			b.ReportAllocs()
			for b.Loop() {
				step()
			}
		})
	}
}

// connected returns a connection of a queue that nobody serves, the positions of the
// adapter that the test plays, and the request that posted the connection's first buffer.
func connected(t testing.TB) (c *Conn, in, out *abi.Index, first abi.Fields) {
	a, ln := still(t)
	in, out = new(abi.Index), new(abi.Index)
	c = newConn(ln, 7, "tcp", nil, nil)
	a.enter(c)
	c.begin()
	return c, in, out, take(ln.queue, in)
}

// queueStep posts two requests and takes a response.
func queueStep(t testing.TB) func() {
	_, ln := still(t)
	q := ln.queue
	var in, out abi.Index
	var dst [4]abi.Fields
	return func() {
		q.TryPost(abi.Fields{Type: 2, Tag: 1}, abi.Fields{Type: 2, Tag: 2})
		f := take(q, &in)
		answer(q, &out, f)
		if q.Poll(dst[:]) != 1 || dst[0].Tag != 2 {
			t.Fatal("lost")
		}
	}
}

// writeStep writes 1 KiB and reads half of it.
func writeStep(t testing.TB) func() {
	c, in, out, rx := connected(t)
	ln, q := c.lane(), c.lane().queue
	at, size := uint32(0), rx.Length
	var next abi.Fields
	p := make([]byte, 1024)
	return func() {
		if n, err := c.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
		f := take(q, in)
		answer(q, out, abi.Fields{Type: 17, Flags: abi.FlagFinal, Tag: f.Tag, Conn: 7, Length: f.Length})
		r := abi.Fields{Type: 16, Tag: rx.Tag, Conn: 7, Length: 512, Offset: at}
		if at += 512; at == size {
			r.Flags = abi.FlagFinal
		}
		answer(q, out, r)
		ln.pass()
		if n, err := c.Read(p); n != 512 || err != nil {
			t.Fatal(n, err)
		}
		// The next buffer is posted while this one has room still.
		if f := take(q, in); f.Type == abi.TypeBufferAvailable {
			next = f
		}
		if at == size {
			rx, at, size = next, 0, next.Length
		}
	}
}

// direct returns a connection that is given no buffers by the driver, a buffer of 64 KiB
// and where its completions go.
func direct(t testing.TB) (c *Conn, in, out *abi.Index, b *Buffer, cq *CompletionQueue) {
	c, in, out, _ = connected(t)
	c.posting = true // no buffers of the driver from now on
	m, err := c.lane().a.Alloc(64 << 10)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = m.Buffer(0, 64<<10); err != nil {
		t.Fatal(err)
	}
	return c, in, out, b, NewCompletionQueue()
}

// sendStep sends a buffer without a copy.
func sendStep(t testing.TB) func() {
	c, in, out, b, cq := direct(t)
	var dst [4]Completion
	return func() {
		if err := c.SendBuffer(b, cq); err != nil {
			t.Fatal(err)
		}
		f := take(c.lane().queue, in)
		answer(c.lane().queue, out, abi.Fields{Type: 17, Flags: abi.FlagFinal, Tag: f.Tag, Conn: 7, Length: f.Length})
		c.lane().pass()
		if cq.Poll(dst[:]) != 1 || dst[0].N != 64<<10 {
			t.Fatal("lost")
		}
	}
}

// bare takes the next request of a connection that posts buffers; its own the driver asks
// for first, once.
func bare(c *Conn, in, out *abi.Index) abi.Fields {
	q := c.lane().queue
	f := take(q, in)
	for ; f.Type == abi.TypeCancellation; f = take(q, in) {
		answer(q, out, abi.Fields{Type: 17, Flags: abi.FlagFinal, Tag: f.Offset, Conn: 7, Aux: 2})
		answer(q, out, abi.Fields{Type: 22, Flags: abi.FlagFinal, Tag: f.Tag, Conn: 7})
		c.lane().pass()
	}
	return f
}

// receiveStep receives into a posted buffer, in two parts.
func receiveStep(t testing.TB) func() {
	c, in, out, b, cq := direct(t)
	return func() { receive(t, c, in, out, b, cq) }
}

// receive posts a buffer and has it filled.
func receive(t testing.TB, c *Conn, in, out *abi.Index, b *Buffer, cq *CompletionQueue) {
	if err := c.PostBuffer(b, cq); err != nil {
		t.Fatal(err)
	}
	f := bare(c, in, out)
	answer(c.lane().queue, out, abi.Fields{Type: 16, Tag: f.Tag, Conn: 7, Length: 100})
	answer(c.lane().queue, out, abi.Fields{Type: 16, Flags: abi.FlagFinal, Tag: f.Tag, Conn: 7, Length: 64<<10 - 100, Offset: 100})
	c.lane().pass()
	var dst [4]Completion
	if cq.Poll(dst[:]) != 1 || dst[0].N != 64<<10 {
		t.Fatal("lost")
	}
}

// readStep has a Read wait for 5 bytes, which come into a buffer that it posts itself.
func readStep(t testing.TB) func() {
	c, in, out, b, cq := direct(t)
	receive(t, c, in, out, b, cq) // the driver's own buffer comes back
	p := make([]byte, 1024)
	over := make(chan int)
	ready := make(chan struct{})
	t.Cleanup(func() { close(ready) })
	go func() {
		for range ready {
			n, err := c.Read(p)
			if err != nil {
				n = -1
			}
			over <- n
		}
	}()
	return func() {
		ready <- struct{}{}
		f := take(c.lane().queue, in)
		for ; f.Type != abi.TypeBufferAvailable; f = take(c.lane().queue, in) {
			runtime.Gosched()
		}
		answer(c.lane().queue, out, abi.Fields{Type: 16, Flags: abi.FlagFinal, Tag: f.Tag, Conn: 7, Length: 5})
		c.lane().pass()
		if <-over != 5 {
			t.Fatal("lost")
		}
	}
}

// segmentStep is lent 1 KiB, twice, and releases it.
func segmentStep(t testing.TB) func() {
	c, in, out, rx := connected(t)
	var next abi.Fields
	at := uint32(0)
	return func() {
		r := abi.Fields{Type: 16, Tag: rx.Tag, Conn: 7, Length: 1024, Offset: at}
		if at += 1024; at == rx.Length {
			r.Flags = abi.FlagFinal
		}
		answer(c.lane().queue, out, r)
		c.lane().pass()
		s, err := c.ReadSegment()
		if err != nil {
			t.Fatal(err)
		}
		more, err := s.Retain()
		if err != nil || s.Release() != nil || more.Release() != nil {
			t.Fatal("not released")
		}
		// The next buffer is posted while this one has room still.
		if f := take(c.lane().queue, in); f.Type == abi.TypeBufferAvailable {
			next = f
		}
		if at == rx.Length {
			rx, at = next, 0
		}
	}
}
