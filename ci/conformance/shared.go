// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"toebox/guestdriver"
)

const ctrGroupPool = 93

// TestMM15_Shared has three consumers read each buffer of a pool that several
// connections share, without a copy: it comes back when the last one has
// released it.
func TestMM15_Shared(t *T) { t.shared(false) }

// TestMM15_Copied is TestMM15_Shared by one copy from the driver's buffers to the
// shared ones.
func TestMM15_Copied(t *T) { t.shared(true) }

func (t *T) shared(copied bool) {
	const conns, consumers, total = 4, 3, int64(400_000)
	a := t.driver()
	pool, err := a.NewPool(guestdriver.PoolConfig{Buffers: 6, Size: 8 << 10, Copy: copied})
	check(t, "make a pool", err)
	start := t.copies(a)
	group := t.counterOf(a, ctrGroupPool)
	var wg sync.WaitGroup
	for i := range conns {
		p, conn := t.dialPeer(a, Script{{Op: OpWait}, {Op: OpSend, N: total, Seed: uint64(40 + i)}})
		c := conn.(*guestdriver.Conn)
		check(t, "use the pool", c.SetPool(pool))
		check(t, "peer: signal", p.Signal(t.ctx))
		wg.Go(func() {
			if err := share(c, uint64(40+i), total, consumers); err != nil {
				t.Errorf("connection %d: %v", i, err)
				c.SetLinger(0)
				c.Close()
			}
		})
	}
	wg.Wait()
	moved := t.copies(a).since(start)
	host := uint64(0)
	if copied {
		host = uint64(conns * total)
	}
	want(t, "copies by the host and by the adapter, in bytes", copies{host: moved.host, adapter: moved.adapter},
		copies{host: host, adapter: uint64(conns * total)})
	if !copied && t.counterOf(a, ctrGroupPool) == group {
		t.Errorf("group_deliveries did not move")
	}
	check(t, "close the pool", pool.Close())
}

// counterOf is one counter of the adapter, as the driver reads it.
func (t *T) counterOf(a *guestdriver.Adapter, i int) uint64 {
	t.Helper()
	all, err := a.Counters(t.ctx)
	check(t, "counters", err)
	return all[i]
}

// share gives each piece of the stream of seed to several consumers at once.
func share(c *guestdriver.Conn, seed uint64, total int64, consumers int) error {
	type lent struct {
		s   *guestdriver.Segment
		off int64
	}
	pieces := make([]chan lent, consumers)
	ends := make(chan error, consumers)
	for i := range pieces {
		pieces[i] = make(chan lent, 1)
		go func() {
			var err error
			expect := make([]byte, 64<<10)
			for p := range pieces[i] {
				b := p.s.Bytes()
				Payload(expect[:len(b)], seed, p.off)
				if !bytes.Equal(b, expect[:len(b)]) {
					err = fmt.Errorf("consumer %d: bytes [%d, %d) differ", i, p.off, p.off+int64(len(b)))
				}
				if rerr := p.s.Release(); rerr != nil {
					err = rerr
				}
			}
			ends <- err
		}()
	}
	var off int64
	var err error
	for err == nil {
		var s *guestdriver.Segment
		if s, err = c.ReadSegment(); err != nil {
			break
		}
		n := int64(len(s.Bytes())) // the last consumer may release it at once
		for i := range pieces {
			mine := s
			if i < len(pieces)-1 {
				if mine, err = s.Retain(); err != nil {
					break
				}
			}
			pieces[i] <- lent{mine, off}
		}
		off += n
	}
	for _, ch := range pieces {
		close(ch)
	}
	for range pieces {
		if e := <-ends; e != nil && (err == nil || err == io.EOF) {
			err = e
		}
	}
	if err != io.EOF || off != total {
		return fmt.Errorf("%d of %d bytes: %w", off, total, err)
	}
	return nil
}
