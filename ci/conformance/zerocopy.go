// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
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
