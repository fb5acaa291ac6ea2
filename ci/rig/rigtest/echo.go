// SPDX-License-Identifier: Apache-2.0

package rigtest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"toebox/ci/conformance"
)

// lifetime bounds a connection of Echo.
const lifetime = 2 * time.Minute

// Echo sends back what comes on connections of l, until l is closed. A connection
// lasts two minutes at most.
func Echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(lifetime))
			_, _ = io.Copy(c, c)
		}()
	}
}

// Transfers sends total bytes on each of conns, which lead to an Echo, and reads them
// back: streams of their own, which must come exact. Each time that the first has
// read another of so many parts, but the last, it calls between with the number of
// the part, from 0. What is left of each stream to be sent after the last call is
// half a part, so that no stream is over before. t fails if a transfer does.
func Transfers(t testing.TB, conns []net.Conn, total, parts int, between func(part int)) {
	t.Helper()
	read := make(chan struct{}, parts)
	errs := make(chan error, 2*len(conns))
	most := total - total/(2*parts)
	last := make(chan struct{})
	open := sync.OnceFunc(func() { close(last) })
	defer open()
	if parts == 1 {
		open()
	}
	for i, c := range conns {
		seed := uint64(i + 1)
		go func() {
			err := send(c, seed, 0, most)
			if err == nil {
				<-last
				err = send(c, seed, most, total)
			}
			errs <- err
		}()
		go func() {
			errs <- receive(c, seed, total, func(from, to int) {
				if i == 0 && from/(total/parts) < to/(total/parts) {
					read <- struct{}{}
				}
			})
		}()
	}
	var failed []error
	left := 2 * len(conns)
	for part := 0; left > 0; {
		select {
		case <-read:
			if part < parts-1 && len(failed) == 0 {
				between(part)
			}
			if part++; part == parts-1 {
				open()
			}
		case err := <-errs:
			if left--; err != nil {
				failed = append(failed, err)
				open()
			}
		}
	}
	if len(failed) > 0 {
		t.Fatal(failed)
	}
}

// send writes the seed's payload from one position to another.
func send(w io.Writer, seed uint64, from, to int) error {
	b := make([]byte, 50_000)
	for off := from; off < to; off += len(b) {
		b = b[:min(len(b), to-off)]
		conformance.Payload(b, seed, int64(off))
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// receive reads them and calls got for each read.
func receive(r io.Reader, seed uint64, total int, got func(from, to int)) error {
	b, want := make([]byte, 30_000), make([]byte, 30_000)
	for off := 0; off < total; {
		n, err := r.Read(b[:min(len(b), total-off)])
		if err != nil {
			return err
		}
		conformance.Payload(want[:n], seed, int64(off))
		if !bytes.Equal(b[:n], want[:n]) {
			return errors.New("the stream is not what was sent")
		}
		got(off, off+n)
		off += n
	}
	return nil
}
