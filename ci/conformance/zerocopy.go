// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"toebox/guestdriver"
)

// Counters of the zero-copy tests (SPEC.md §13).
const (
	ctrPayloadReads = 13 // bytes
	ctrCopiesBytes  = 63
)

// copies are what moved payload on both sides of the interface.
type copies struct {
	host, direct, adapter, dma uint64
}

func (t *T) copies(a *guestdriver.Adapter) copies {
	t.Helper()
	all, err := a.Counters(t.ctx)
	check(t, "counters", err)
	if len(all) <= ctrCopiesBytes {
		t.Fatalf("the adapter has %d counters", len(all))
	}
	s := a.Stats()
	return copies{s.HostCopyBytes, s.DirectBytes, all[ctrCopiesBytes], all[ctrPayloadReads]}
}

func (c copies) since(old copies) copies {
	return copies{c.host - old.host, c.direct - old.direct, c.adapter - old.adapter, c.dma - old.dma}
}

// buffers registers memory and cuts it into n buffers.
func (t *T) buffers(a *guestdriver.Adapter, n, size int) []*guestdriver.Buffer {
	t.Helper()
	m, err := a.Alloc(n * size)
	check(t, "register memory", err)
	t.Cleanup(func() {
		if err := m.Deregister(); err != nil {
			t.Errorf("deregister memory: %v", err)
		}
	})
	out := make([]*guestdriver.Buffer, n)
	for i := range out {
		out[i], err = m.Buffer(i*size, size)
		check(t, "make a buffer", err)
	}
	return out
}

// TestMM02_Send sends 64 MiB out of registered memory: no copy by the host, one
// copy of each byte by the adapter, each buffer back when the peer has it.
func TestMM02_Send(t *T) {
	const size, total = 512 << 10, int64(64 << 20)
	a := t.driver()
	bufs := t.buffers(a, 4, size)
	p, conn := t.dialPeer(a, Script{{Op: OpDiscard}})
	c := conn.(*guestdriver.Conn)
	q := guestdriver.NewCompletionQueue()
	before := t.copies(a)
	posted := int64(0)
	h := sha256.New()
	more := func(b *guestdriver.Buffer) {
		if posted < total {
			check(t, "post a send", c.SendBuffer(b, q))
			h.Write(b.Bytes()) // reading is allowed meanwhile
			posted += size
		}
	}
	for i, b := range bufs {
		Payload(b.Bytes(), 31, int64(i*size))
		more(b)
	}
	for left := total / size; left > 0; left-- {
		d, err := q.Next(t.ctx)
		check(t, "completion", err)
		if d.Conn != c || d.Op != guestdriver.OpSend || d.Offset != 0 || d.N != size || !d.Final || d.Err != nil {
			t.Fatalf("completion of a send: %+v", d)
		}
		more(d.Buffer)
	}
	want(t, "copies by the host, in registered memory, by the adapter, and DMA, in bytes",
		t.copies(a).since(before), copies{0, uint64(total), uint64(total), uint64(total)})
	check(t, "close", c.CloseWrite())
	res := t.outcome(p)
	want(t, "bytes at the peer", res.Received, total)
	want(t, "SHA-256 at the peer", res.Sum, hex.EncodeToString(h.Sum(nil)))
}

// TestMM02_WriteDeadline: a Write from registered memory that a deadline ends
// gives the memory back and counts exactly what the peer gets.
func TestMM02_WriteDeadline(t *T) {
	a := t.driver()
	const size = 24 << 20
	p, conn := t.dialPeer(a, Script{{Op: OpWait}, {Op: OpDiscard}})
	m, err := a.Alloc(size)
	check(t, "register memory", err)
	Payload(m.Bytes(), 32, 0)
	before := t.copies(a)
	check(t, "set a deadline", conn.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	n, err := conn.Write(m.Bytes())
	if !errors.Is(err, os.ErrDeadlineExceeded) || n >= size {
		t.Errorf("write to a peer that does not read: %d, %v", n, err)
	}
	clear(m.Bytes()) // it is ours
	check(t, "deregister", m.Deregister())
	check(t, "set no deadline", conn.SetWriteDeadline(time.Time{}))
	check(t, "peer: signal", p.Signal(t.ctx))
	tail := []byte("what follows")
	_, err = conn.Write(tail)
	check(t, "write behind it", err)
	check(t, "half-close", conn.CloseWrite())
	res := t.outcome(p)
	want(t, "bytes at the peer", res.Received, int64(n+len(tail)))
	h := sha256.New()
	_, _ = io.Copy(h, &source{seed: 32, left: int64(n)})
	h.Write(tail)
	want(t, "SHA-256 at the peer", res.Sum, hex.EncodeToString(h.Sum(nil)))
	want(t, "copies by the host", t.copies(a).since(before).host, uint64(len(tail)))
}

// TestMM02_Receive receives 64 MiB into posted buffers: no copy by the host, one
// copy of each byte by the adapter, in the order of the posts, told of as it
// comes.
func TestMM02_Receive(t *T) {
	const size, total = 256 << 10, int64(64 << 20)
	a := t.driver()
	bufs := t.buffers(a, 4, size)
	p, conn := t.dialPeer(a, Script{{Op: OpWait}, {Op: OpSend, N: total, Seed: 33}})
	c := conn.(*guestdriver.Conn)
	c.SetReadAhead(false)
	q := guestdriver.NewCompletionQueue()
	for _, b := range bufs {
		check(t, "post a buffer", c.PostBuffer(b, q))
	}
	before := t.copies(a)
	check(t, "peer: signal", p.Signal(t.ctx))
	expect := make([]byte, size)
	var off int64
	for next := 0; off < total; {
		d, err := q.Next(t.ctx)
		check(t, "completion", err)
		if d.Buffer != bufs[next] || d.Conn != c || d.Op != guestdriver.OpReceive || d.Offset != int(off%size) || d.N == 0 || d.Err != nil ||
			d.Final != (d.Offset+d.N == size) {
			t.Fatalf("completion behind %d bytes, in buffer %d: %+v", off, next, d)
		}
		got := d.Buffer.Bytes()[d.Offset : d.Offset+d.N]
		// Of most of it the ends of each delivery: the stream is costly to make.
		if edge := 512; off > total/8 && d.N > 2*edge {
			Payload(expect[:edge], 33, off)
			Payload(expect[edge:2*edge], 33, off+int64(d.N-edge))
			got = slices.Concat(got[:edge], got[d.N-edge:])
		} else {
			Payload(expect[:d.N], 33, off)
		}
		if !bytes.Equal(got, expect[:len(got)]) {
			t.Fatalf("bytes [%d, %d) differ", off, off+int64(d.N))
		}
		off += int64(d.N)
		if d.Final {
			next = (next + 1) % len(bufs)
			if off+int64(len(bufs)-1)*size < total {
				check(t, "post a buffer", c.PostBuffer(d.Buffer, q))
			}
		}
	}
	moved := t.copies(a).since(before)
	want(t, "copies by the host, in registered memory, by the adapter, in bytes",
		copies{moved.host, moved.direct, moved.adapter, 0}, copies{0, uint64(total), uint64(total), 0})
	if n, err := c.Read(expect); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	want(t, "peer's error", t.outcome(p).Err, "")
}

// TestMM03_ReadDirect: a Read into registered memory that is there before the
// data gets them without a copy; what comes beyond, or earlier, is copied.
func TestMM03_ReadDirect(t *T) {
	a := t.driver()
	const size = 64 << 10
	m, err := a.Alloc(size)
	check(t, "register memory", err)
	p, conn := t.dialPeer(a, Script{{Op: OpWait}, {Op: OpSend, N: 100, Seed: 34}, {Op: OpWait}, {Op: OpSend, N: 5000, Seed: 35}, {Op: OpDiscard}})
	expect := make([]byte, size)
	type result struct {
		n   int
		err error
	}
	over := make(chan result, 1)
	go func() {
		n, err := conn.Read(m.Bytes())
		over <- result{n, err}
	}()
	held := func(want int) {
		t.until("the adapter to have the memory of the read", func() bool {
			v, err := a.Attribute(t.ctx, conn.(*guestdriver.Conn).ID(), 0x0289)
			check(t, "HELD_BUFFERS", err)
			for ; len(v) >= 16; v = v[16:] {
				if binary.LittleEndian.Uint64(v[8:]) == m.IOVA() {
					return int(binary.LittleEndian.Uint32(v[4:])) == want
				}
			}
			return false
		})
	}
	held(size)
	before := t.copies(a)
	check(t, "peer: signal", p.Signal(t.ctx))
	r := <-over
	if r.err != nil || r.n == 0 || r.n > 100 {
		t.Fatalf("read: %+v", r)
	}
	Payload(expect[:100], 34, 0)
	want(t, "bytes at the application's own address", string(m.Bytes()[:r.n]), string(expect[:r.n]))
	want(t, "copies by the host", t.copies(a).since(before).host, 0)
	_, err = io.ReadFull(conn, expect[r.n:100]) // heap: the rest, if it came in two
	check(t, "the rest", err)

	// Data first: it is in the driver's buffers, and copied.
	check(t, "peer: signal", p.Signal(t.ctx))
	_, err = io.ReadFull(conn, expect[:1])
	check(t, "read one byte", err)
	n, err := conn.Read(m.Bytes())
	check(t, "read", err)
	for n < 4999 {
		k, err := conn.Read(m.Bytes()[n:])
		check(t, "read", err)
		n += k
	}
	Payload(expect[:5000], 35, 0)
	want(t, "bytes", string(m.Bytes()[:n]), string(expect[1:5000]))

	// A deadline gets the memory back, and nothing is lost by that.
	check(t, "set a deadline", conn.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	k, err := conn.Read(m.Bytes())
	if k != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read past its deadline: %d, %v", k, err)
	}
	check(t, "deregister", m.Deregister())
}

// TestMM02_DMAWhen: with DMA_WHEN 1 posted buffers get nothing until a read of
// the connection is posted, one with ONCE; then those before it come first.
func TestMM02_DMAWhen(t *T) {
	const ctrReadWaits = 120
	c := t.start()
	r := c.ring(0, ringConfig{})
	_, id := r.serve(Script{{Op: OpSend, N: 600, Seed: 37}, {Op: OpDiscard}}, attr(0x0239, 1))
	want(t, "DMA_WHEN", r.scalar(reqConnAttr, id, 0x0239), 1)
	bulk, first := r.buffer(1000), r.buffer(200)
	r.available(0, bulk, 0)
	tag := r.available(id, first, 0)
	c.until("read_waits to move", func() bool { return c.counter(ctrReadWaits) > 0 })
	c.until("all to arrive", func() bool { return r.scalar(reqConnAttr, id, 0x0284) == 600 })
	want(t, "BYTES_DELIVERED without a read", r.scalar(reqConnAttr, id, 0x0285), 0)
	read := r.buffer(300)
	once := r.available(id, read, flagOnce)
	d := r.answer(tag)
	if terminal(t, "the buffer before the read", d, rspReceive, stOK); d.Length != 200 {
		t.Errorf("delivery %v", d)
	}
	d = r.answer(once)
	if terminal(t, "the read", d, rspReceive, stOK); d.Length != 300 {
		t.Errorf("delivery %v", d)
	}
	expect := make([]byte, 600)
	Payload(expect, 37, 0)
	if !bytes.Equal(first.Bytes, expect[:200]) || !bytes.Equal(read.Bytes, expect[200:500]) {
		t.Errorf("bytes differ")
	}
	r.quiet("a delivery without a read", func(d desc) bool { return d.Type == rspReceive })
	status, _ := r.setScalar(reqConnAttr, id, 0x0239, 0)
	want(t, "status of DMA_WHEN 0", status, stOK)
	d = r.take("the rest in the bulk buffer", func(d desc) bool { return d.Type == rspReceive })
	if d.Conn != id || d.Length != 100 || !bytes.Equal(bulk.Bytes[:100], expect[500:]) {
		t.Errorf("delivery %v", d)
	}
	status, _ = r.setScalar(reqConnAttr, id, 0x0239, 2)
	want(t, "status of DMA_WHEN 2", status, stBadValue)
	r.finish(id)
}
