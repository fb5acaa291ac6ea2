// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"io"
	"net"

	"toebox/ci/bench/task"
	"toebox/guestdriver"
)

// How much a program that copies nothing has posted on a connection: so many bytes,
// in so many buffers at least and at most.
const (
	aheadBytes = 2 << 20
	aheadLeast = 2
	aheadMost  = 32
	// aheadAll bounds it on all connections together.
	aheadAll = 32 << 20
)

// stream writes or reads as fast as it goes.
func (r *run) stream(ctx context.Context) error {
	defer r.end()
	conns, err := r.conns(ctx)
	if err != nil {
		return err
	}
	if r.task.Direct {
		return r.direct(ctx, conns)
	}
	return r.measure(ctx, func() {
		for _, c := range conns {
			r.worker(func() error { return r.copying(c) })
		}
	})
}

// copying moves bytes with calls of Write or Read.
func (r *run) copying(c net.Conn) error {
	p := make([]byte, r.task.Size)
	call := c.Write
	if r.task.Kind == task.Receive {
		call = c.Read
	}
	for !r.over.Load() {
		n, err := call(p)
		if err != nil {
			return err
		}
		r.bytes.Add(uint64(n))
	}
	return nil
}

// ahead is how many buffers are posted on each of n connections.
func ahead(size, n int) int {
	k := min(max(aheadBytes/size, aheadLeast), aheadMost)
	return min(k, max(aheadAll/(size*n), 1))
}

// direct moves bytes from or to registered memory, for all connections from one
// goroutine.
func (r *run) direct(ctx context.Context, conns []net.Conn) error {
	if r.task.Side != task.Adapter {
		return fmt.Errorf("not without copies")
	}
	size := r.task.Size
	each := ahead(size, len(conns))
	m, err := r.agent.adapter.Alloc(size * each * len(conns))
	if err != nil {
		return err
	}
	q := guestdriver.NewCompletionQueue()
	post := (*guestdriver.Conn).SendBuffer
	if r.task.Kind == task.Receive {
		post = (*guestdriver.Conn).PostBuffer
	}
	posted := 0
	for i, c := range conns {
		for k := range each {
			b, err := m.Buffer((i*each+k)*size, size)
			if err == nil {
				err = post(c.(*guestdriver.Conn), b, q)
			}
			if err != nil {
				return err
			}
			posted++
		}
	}
	err = r.measure(ctx, func() {
		r.worker(func() error {
			err := r.again(ctx, q, post, &posted)
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		})
	})
	// The memory is the program's again with the final completions, which come with
	// the ends of the connections.
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	for posted > 0 {
		d, e := q.Next(ctx)
		if e != nil {
			return fmt.Errorf("%d buffers are not back: %w", posted, e)
		}
		if d.Final {
			posted--
		}
	}
	if e := m.Deregister(); err == nil {
		err = e
	}
	return err
}

// again posts each buffer that comes back once more.
func (r *run) again(ctx context.Context, q *guestdriver.CompletionQueue, post func(*guestdriver.Conn, *guestdriver.Buffer, *guestdriver.CompletionQueue) error, posted *int) error {
	var done [64]guestdriver.Completion
	var failed error
	for failed == nil {
		n := q.Poll(done[:])
		if n == 0 {
			if r.over.Load() {
				return nil
			}
			if err := q.Wait(ctx); err != nil {
				return err
			}
			continue
		}
		for _, d := range done[:n] { // all of them: they are off the queue
			r.bytes.Add(uint64(d.N))
			if !d.Final {
				continue
			}
			*posted--
			switch {
			case d.Err != nil:
				failed = d.Err
			case failed != nil || r.over.Load():
			default:
				if failed = post(d.Conn, d.Buffer, q); failed == nil {
					*posted++
				}
			}
		}
	}
	return failed
}
