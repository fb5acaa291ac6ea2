// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// maySkip reports whether a request may skip bytes of the stream: a buffer of a
// connection, by itself.
func maySkip(f *abi.Fields) bool {
	return f.Conn != 0 && f.Flags&(abi.FlagGroup|abi.FlagReport) == 0
}

// wants is how many bytes of the stream the request takes: those that it skips,
// and those that fill it.
func (r *request) wants() uint64 { return uint64(r.skip-r.skipped) + uint64(r.todo()) }

// toSkip is how many bytes of c are skipped before the next one goes into r
// (RX14, SPEC.md §14.11): what is left of those that the request names, else of
// SKIP before the first byte.
func (c *conn) toSkip(r *request) int {
	if r.flags&abi.FlagSkip != 0 {
		return int(r.skip - r.skipped)
	}
	if r.done > 0 || r.piece != 0 && r.sequence() != 0 {
		return 0
	}
	return c.toSkipNext()
}

// toSkipNext is how many bytes are still skipped because of SKIP before the next
// buffer is begun.
func (c *conn) toSkipNext() int {
	n := c.attrs.of(abi.AttrSkip)
	if n != 0 && c.proto.number() != engine.TCP {
		return 0
	}
	return int(n - min(n, uint64(c.skipped)))
}

// skip drops what is to be skipped before r, of the bytes that may go, and returns
// how many that were. It reports whether r comes next.
func (q *queue) skip(c *conn, r *request, most int) (n int, done bool, err error) {
	want := c.toSkip(r)
	if want == 0 {
		return 0, true, nil
	}
	n, err = c.ep.Read(min(want, most, turnBytes), q.looks.drop)
	if n == 0 {
		if err == nil {
			err = engine.ErrWouldBlock
		}
		return 0, false, err
	}
	q.count(abi.CounterBytesReceived, uint64(n))
	q.count(abi.CounterSkippedBytes, uint64(n))
	c.delivered += uint64(n)
	if r.flags&abi.FlagSkip == 0 {
		c.skipped += uint32(n)
	} else {
		r.skipped += uint32(n)
		c.room -= uint64(n)
	}
	return n, n == want && n < most, nil
}
