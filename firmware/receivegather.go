// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"io"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// maxGathered bounds the pieces of engine memory that one transfer is made of.
const maxGathered = 1024

// gatherer makes one transfer to the host of many pieces in the engine.
type gatherer struct {
	pieces [][]byte // of the engine, while it is peeked into
	have   int      // bytes in them
	want   int
	wrote  int
}

// gatherStream moves what is left for the mover, which the engine has, in
// transfers of a size that end with pages.
func (q *queue) gatherStream(c *conn, size uint64) error {
	m, g := &q.move, &q.gather
	for m.left > 0 && m.err == nil {
		g.have, g.wrote = 0, 0
		g.want = m.within(int(min(uint64(m.left), transfer(m.to, size))))
		apart := m.apart
		_, err := c.ep.Peek(g.want, q.looks.assemble)
		clear(g.pieces)
		g.pieces = g.pieces[:0]
		if g.wrote == 0 && m.apart != apart {
			continue
		}
		if g.wrote == 0 {
			return err
		}
		// What the engine gives up is what counts.
		n, err := c.ep.Read(g.wrote, q.looks.drop)
		m.to += uint64(n)
		m.left -= n
		m.moved += n
		q.count(abi.CounterDeliveriesMerged, m.pass(n))
		if n < g.wrote {
			return err
		}
	}
	return nil
}

// assemble takes note of received bytes p, and writes all pieces when they are
// enough: they stand still as long as the engine is peeked into.
func (q *queue) assemble(p []byte) int {
	g := &q.gather
	n := min(len(p), g.want-g.have)
	g.pieces = append(g.pieces, p[:n])
	g.have += n
	if g.have < g.want && len(g.pieces) < maxGathered {
		return n
	}
	q.writeGathered()
	return 0
}

// writeGathered copies the pieces to where the mover stands, as one transfer.
func (q *queue) writeGathered() {
	m, g := &q.move, &q.gather
	rest := g.pieces
	err := q.fw.chip.View(m.to, g.have, true, q.looks.copyAll)
	g.pieces = rest
	if err == nil && g.wrote < g.have {
		err = io.ErrShortWrite
	}
	if err != nil && g.wrote == 0 && m.crosses(g.have) {
		m.keepApart()
		return
	}
	m.err = err
	if g.wrote > 0 {
		q.count(abi.CounterPayloadWrites, 1)
		q.count(abi.CounterPayloadBytesWritten, uint64(g.wrote))
		q.count(abi.CounterCopiesBytes, uint64(g.wrote))
	}
}

// copyAll copies the next bytes of the pieces to host memory.
func (q *queue) copyAll(dst []byte) error {
	g := &q.gather
	for len(dst) > 0 && len(g.pieces) > 0 {
		n := q.store(dst, g.pieces[0])
		dst, g.wrote = dst[n:], g.wrote+n
		if g.pieces[0] = g.pieces[0][n:]; len(g.pieces[0]) == 0 {
			g.pieces = g.pieces[1:]
		}
	}
	return nil
}

// gathers is the size of the transfers by which a connection whose bytes wait
// is served; 0: as the bytes stand in the engine.
func (c *conn) gathers() uint64 {
	if c.delay == nil || c.attrs.of(abi.AttrGatherThreshold) == 0 {
		return 0
	}
	return c.attrs.of(abi.AttrLinkTransferSize)
}

// readStream moves bytes from the engine to where the mover stands: most says
// whether the engine is known to have them.
func (q *queue) readStream(c *conn, most int) error {
	m := &q.move
	if size := c.gathers(); size != 0 && most != unlimited {
		err := q.gatherStream(c, size)
		if err == nil && m.moved == 0 && m.err == nil {
			err = engine.ErrWouldBlock
		}
		return err
	}
	// The engine's count is of what deliver took: the one to believe is ours.
	_, err := c.ep.Read(m.left, q.looks.deliver)
	m.piece = nil
	return err
}
