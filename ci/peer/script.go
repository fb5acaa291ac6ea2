// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/netip"
	"slices"

	"toebox/ci/conformance"
)

// stalled is the receive buffer of connections that wait: small, so that a
// sender notices soon that nobody reads.
const stalled = 64 << 10

// chunk is how much a script moves at a time.
const chunk = 64 << 10

// run runs a script on a connection and closes it.
func run(ctx context.Context, c *net.TCPConn, s conformance.Script, signal <-chan struct{}) conformance.Result {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if slices.ContainsFunc(s, func(st conformance.Step) bool { return st.Op == conformance.OpWait }) {
		_ = c.SetReadBuffer(stalled) // a smaller window is all it is for
	}
	w := &walk{c: c, sum: sha256.New()}
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		w.res.Remote = a
	}
	for i, st := range s {
		if err := w.step(ctx, st, signal); err != nil {
			w.res.Err = fmt.Sprintf("step %d (%s): %v", i, st.Op, err)
			break
		}
	}
	c.Close()
	w.res.Sum = hex.EncodeToString(w.sum.Sum(nil))
	return w.res
}

type walk struct {
	c   *net.TCPConn
	sum hash.Hash
	buf []byte // made when bytes move: thousands of connections may only wait
	res conformance.Result
}

func (w *walk) step(ctx context.Context, st conformance.Step, signal <-chan struct{}) error {
	if w.buf == nil && st.Op != conformance.OpWait {
		w.buf = make([]byte, chunk)
	}
	switch st.Op {
	case conformance.OpEcho:
		return w.read(0, func(p []byte) error {
			_, err := w.c.Write(p)
			return err
		})
	case conformance.OpDiscard:
		return w.read(st.N, nil)
	case conformance.OpSend:
		for off := int64(0); off < st.N; {
			p := w.buf[:min(int64(len(w.buf)), st.N-off)]
			conformance.Payload(p, st.Seed, off)
			n, err := w.c.Write(p)
			off += int64(n)
			if err != nil {
				return err
			}
		}
		return nil
	case conformance.OpFIN:
		return w.c.CloseWrite()
	case conformance.OpReset:
		return w.c.SetLinger(0) // with the Close that follows
	case conformance.OpWait:
		select {
		case <-signal:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.New("unknown operation")
}

// read reads n bytes, or to the end of the stream if n is 0.
func (w *walk) read(n int64, got func([]byte) error) error {
	for left := n; n == 0 || left > 0; {
		p := w.buf
		if n != 0 {
			p = p[:min(int64(len(p)), left)]
		}
		k, err := w.c.Read(p)
		w.sum.Write(p[:k])
		w.res.Received += int64(k)
		left -= int64(k)
		if k > 0 && got != nil {
			if err := got(p[:k]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			w.res.EOF = true
			if n != 0 && left > 0 {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
