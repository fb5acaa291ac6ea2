// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"toebox/ci/conformance"
	"toebox/guestdriver"
)

// TestCarryOverDirect: orderly stops in the middle of transfers without a copy,
// both ways: posted buffers stay posted over the stop, and both streams are exact.
func TestCarryOverDirect(t *testing.T) {
	const total, size, stops = 4 << 20, 64 << 10, 3
	c := newCarrier(t, 1)
	nc, err := c.a.Dial("tcp", "10.0.2.2:"+echoServer(t))
	conn := within(t, nc, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := c.a.Alloc(8 * size)
	if err != nil {
		t.Fatal(err)
	}
	buffers := func(from int) (list []*guestdriver.Buffer) {
		for i := range 4 {
			b, err := m.Buffer((from+i)*size, size)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, b)
		}
		return list
	}
	out, in := buffers(0), buffers(4)
	errs := make(chan error, 2)
	at := make(chan struct{}, stops)
	last := make(chan struct{}) // closed behind the last stop: some bytes are left for then
	go func() {
		q := guestdriver.NewCompletionQueue()
		for n := 0; n < total/size+len(out); n++ {
			b := out[n%len(out)]
			if n >= len(out) {
				if d, err := q.Next(ctx); err != nil || d.Buffer != b || d.N != size || d.Err != nil {
					errs <- fmt.Errorf("send %d: %+v, %v", n-len(out), d, err)
					return
				}
			}
			if n == (total-total/(2*(stops+1)))/size {
				select {
				case <-last:
				case <-ctx.Done():
					errs <- fmt.Errorf("%d sends, and no last stop: %w", n, ctx.Err())
					return
				}
			}
			if n < total/size {
				conformance.Payload(b.Bytes(), 5, int64(n*size))
				if err := conn.SendBuffer(b, q); err != nil {
					errs <- err
					return
				}
			}
		}
		errs <- nil
	}()
	go func() {
		q := guestdriver.NewCompletionQueue()
		for _, b := range in {
			if err := conn.PostBuffer(b, q); err != nil {
				errs <- err
				return
			}
		}
		expect := make([]byte, size)
		for got := 0; got < total; {
			d, err := q.Next(ctx)
			if err != nil || d.Err != nil || d.Offset != got%size || d.Buffer != in[got/size%len(in)] {
				errs <- fmt.Errorf("behind %d bytes: %+v, %v", got, d, err)
				return
			}
			conformance.Payload(expect[:d.N], 5, int64(got))
			if !bytes.Equal(d.Buffer.Bytes()[d.Offset:d.Offset+d.N], expect[:d.N]) {
				errs <- fmt.Errorf("bytes [%d, %d) differ", got, got+d.N)
				return
			}
			before := got
			got += d.N
			if part := total / (stops + 1); before/part < got/part && got < total {
				at <- struct{}{}
			}
			if d.Final && got+(len(in)-1)*size < total {
				if err := conn.PostBuffer(d.Buffer, q); err != nil {
					errs <- err
					return
				}
			}
		}
		errs <- nil
	}()
	bound := time.NewTimer(patience)
	defer bound.Stop()
	for stopped, left := 0, 2; left > 0; {
		select {
		case <-at:
			c.stop(stopped%2 == 1)
			stopped++
			c.until("the connection to go on", func() bool { return c.a.Stats().CarriedOver == uint64(stopped) })
			if stopped == stops {
				close(last)
			}
		case err := <-errs:
			if left--; err != nil {
				t.Fatal(err)
			}
		case <-bound.C:
			t.Fatalf("after %d stops: %+v", stopped, c.a.Stats())
		}
	}
	// Copied is only what came with the records: it was received and not delivered.
	if s := c.a.Stats(); s.CarriedOver != stops || s.CarryFailed != 0 || s.DirectBytes+s.HostCopyBytes != 2*total || s.DirectBytes < total {
		t.Errorf("%+v", s)
	}
	conn.SetLinger(0)
	conn.Close()
	if err := m.Deregister(); err != nil {
		t.Error(err)
	}
}
