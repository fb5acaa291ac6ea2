// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"

	"toebox/guestdriver"
)

// mixPiece is the largest send, read or post of TestMM03_Switch: half of them are
// above the length from which registered memory goes without a copy.
const mixPiece = 32 << 10

// TestMM03_Switch sends by copy and without, and reads and posts early, late, too
// small and never, by seed, while bytes flow both ways: none is lost, none is
// out of order, each buffer comes back once.
func TestMM03_Switch(t *T) {
	a := t.driver()
	total := t.amount(2 << 20)
	p, conn := t.dialPeer(a, Script{{Op: OpEcho}})
	c := conn.(*guestdriver.Conn)
	send := &mixer{t: t, a: a, c: c, rng: rand.New(rand.NewPCG(t.rng.Uint64(), 1))}
	receive := &mixer{t: t, a: a, c: c, rng: rand.New(rand.NewPCG(t.rng.Uint64(), 2))}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := errors.Join(send.begin(), send.send(total), c.CloseWrite(), send.mem.Deregister()); err != nil {
			t.Errorf("send: %v", err)
			c.SetLinger(0)
			c.Close()
		}
	})
	err := receive.begin()
	for err == nil {
		err = receive.step()
	}
	if err != io.EOF || receive.off != total {
		t.Errorf("received %d of %d bytes: %v", receive.off, total, err)
		c.SetLinger(0)
		c.Close()
	}
	wg.Wait()
	check(t, "deregister", receive.mem.Deregister())
	want(t, "bytes at the peer", t.outcome(p).Received, total)
	s := a.Stats()
	t.Logf("reads: %d direct, %d buffered; writes: %d direct, %d buffered; %d bytes copied, %d not",
		s.DirectReads, s.BufferedReads, s.DirectWrites, s.BufferedWrites, s.HostCopyBytes, s.DirectBytes)
}

// mixer is one direction of TestMM03_Switch.
type mixer struct {
	t            *T
	a            *guestdriver.Adapter
	c            *guestdriver.Conn
	rng          *rand.Rand
	mem          *guestdriver.Memory
	heap, expect []byte
	q            *guestdriver.CompletionQueue
	off          int64 // in the stream
}

const mixSeed = 36

func (m *mixer) begin() (err error) {
	m.mem, err = m.a.Alloc(4 * mixPiece)
	m.heap, m.expect = make([]byte, mixPiece), make([]byte, mixPiece)
	m.q = guestdriver.NewCompletionQueue()
	return err
}

// part is n bytes of registered memory at an odd place.
func (m *mixer) part(n int) []byte { return m.mem.Bytes()[m.rng.IntN(mixPiece):][:n] }

// send sends the stream up to total by every kind of send.
func (m *mixer) send(total int64) error {
	for m.off < total {
		n := int(min(total-m.off, int64(1+m.rng.IntN(mixPiece))))
		var err error
		switch kind := m.rng.IntN(4); kind {
		case 0, 1:
			p := m.heap[:n]
			if kind == 1 {
				p = m.part(n)
			}
			Payload(p, mixSeed, m.off)
			_, err = m.c.Write(p)
		case 2:
			direct := m.part(n)
			Payload(direct, mixSeed, m.off)
			cut := m.rng.IntN(n + 1)
			v := net.Buffers{append(m.heap[:0], direct[:cut]...), direct[cut:]}
			_, err = m.c.WriteBuffers(&v)
		case 3:
			err = m.post(n)
		}
		if err != nil {
			return err
		}
		m.off += int64(n)
	}
	return nil
}

// post sends n bytes as two buffers, both posted before the first is done.
func (m *mixer) post(n int) error {
	posted := 0
	for i, at := 0, 0; at < n; i++ {
		k := min(n-at, n/2+1)
		b, err := m.mem.Buffer(2*mixPiece+i*mixPiece, k)
		if err != nil {
			return err
		}
		Payload(b.Bytes(), mixSeed, m.off+int64(at))
		if err := m.c.SendBuffer(b, m.q); err != nil {
			return err
		}
		at += k
		posted++
	}
	for ; posted > 0; posted-- {
		d, err := m.q.Next(m.t.ctx)
		if err == nil {
			err = d.Err
		}
		if err == nil && (!d.Final || d.N != len(d.Buffer.Bytes())) {
			err = errors.New("completion of a part of a send")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// take compares the next bytes of the stream.
func (m *mixer) take(p []byte) error {
	e := m.expect[:len(p)]
	Payload(e, mixSeed, m.off)
	if !bytes.Equal(p, e) {
		return errors.New("bytes differ")
	}
	m.off += int64(len(p))
	return nil
}

// step receives once.
func (m *mixer) step() error {
	n := 1 + m.rng.IntN(mixPiece)
	switch m.rng.IntN(6) {
	case 0:
		k, err := m.c.Read(m.heap[:n])
		if terr := m.take(m.heap[:k]); terr != nil {
			return terr
		}
		return err
	case 1, 2:
		p := m.part(n)
		k, err := m.c.Read(p)
		if terr := m.take(p[:k]); terr != nil {
			return terr
		}
		return err
	case 3:
		m.c.SetReadAhead(m.rng.IntN(2) == 0)
		return nil
	case 4:
		return m.receive(1+m.rng.IntN(3), false)
	default:
		return m.receive(1, true)
	}
}

// receive posts buffers and takes what comes until all are back; with cancel it
// asks for the last one at once.
func (m *mixer) receive(count int, cancel bool) (err error) {
	posted := 0
	for i := range count {
		b, err := m.mem.Buffer(i*mixPiece, 1+m.rng.IntN(mixPiece))
		if err != nil {
			return err
		}
		if err := m.c.PostBuffer(b, m.q); err != nil {
			if posted == 0 {
				return err
			}
			break
		}
		posted++
		if cancel {
			if err := m.c.CancelBuffer(b); err != nil {
				return err
			}
		}
	}
	for posted > 0 {
		d, qerr := m.q.Next(m.t.ctx)
		if qerr != nil {
			return qerr
		}
		if terr := m.take(d.Buffer.Bytes()[d.Offset : d.Offset+d.N]); terr != nil {
			return terr
		}
		if !d.Final {
			continue
		}
		posted--
		if d.Err != nil && !errors.Is(d.Err, syscall.ECANCELED) && err == nil {
			err = d.Err
		}
	}
	return err
}
