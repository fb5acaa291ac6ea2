// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"io"
	"net"
	"slices"
	"strconv"
	"time"

	"toebox/ci/bench/task"
)

// echo sends a message and waits for it to come back, again and again.
func (r *run) echo(ctx context.Context) error {
	defer r.end()
	conns, err := r.conns(ctx)
	if err != nil {
		return err
	}
	err = r.measure(ctx, func() {
		for _, c := range conns {
			r.worker(func() error {
				p := make([]byte, r.task.Size)
				return r.each(func() error { return exchange(c, p) })
			})
		}
	})
	r.sum()
	return err
}

func exchange(c net.Conn, p []byte) error {
	if _, err := c.Write(p); err != nil {
		return err
	}
	_, err := io.ReadFull(c, p)
	return err
}

// connect makes connections and closes them, as many at a time as the task says.
func (r *run) connect(ctx context.Context) error {
	err := r.measure(ctx, func() {
		for range max(r.task.Conns, 1) {
			r.worker(func() error {
				return r.each(func() error {
					c, err := r.dial(ctx)
					if err != nil {
						return err
					}
					return c.Close()
				})
			})
		}
	})
	r.sum()
	return err
}

// accept takes connections from the peer and closes them.
func (r *run) accept(ctx context.Context) error {
	address := ":" + strconv.Itoa(task.AcceptPort)
	var l net.Listener
	var err error
	if r.task.Side == task.Adapter {
		l, err = r.agent.adapter.Listen("tcp4", address)
	} else {
		l, err = net.Listen("tcp4", address)
	}
	if err != nil {
		return err
	}
	r.atEnd(func() { _ = l.Close() })
	defer r.end()
	err = r.measure(ctx, func() {
		r.worker(func() error {
			return r.each(func() error {
				c, err := l.Accept()
				if err != nil {
					return err
				}
				return c.Close()
			})
		})
	})
	r.sum()
	return err
}

// each does op until the run is over, and notes how long each takes that ends during
// the measurement.
func (r *run) each(op func() error) error {
	took := make([]time.Duration, 0, 1<<12)
	defer func() {
		r.mu.Lock()
		r.took = append(r.took, took...)
		r.mu.Unlock()
	}()
	for !r.over.Load() {
		began := time.Now()
		if err := op(); err != nil {
			return err
		}
		if r.counting.Load() {
			took = append(took, time.Since(began))
			r.ops.Add(1)
			r.bytes.Add(uint64(r.task.Size))
		}
	}
	return nil
}

// sum puts the times of operations into the result.
func (r *run) sum() {
	slices.Sort(r.took)
	if n := len(r.took); n > 0 {
		r.result.Median, r.result.P99 = r.took[n/2], r.took[n*99/100]
	}
}
