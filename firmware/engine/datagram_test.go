// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

func TestDatagrams(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
		ip, other := a.v4, b.v4
		if v6 {
			ip, other = a.v6, b.v6
		}
		// Datagrams that wait for the neighbour's address may be overtaken.
		listen(t, b, v6, 80, 1)
		connect(t, a, v6, addrPort(other, 80))
		x, y := open(t, a, engine.UDP, v6), open(t, b, engine.UDP, v6)
		if _, err := x.Write(1, nil); !errors.Is(err, engine.ErrNotConnected) || x.Writable() != 0 {
			t.Errorf("write before connect: %v", err)
		}
		if _, err := x.Read(1, nil); !errors.Is(err, engine.ErrNotConnected) {
			t.Errorf("read before connect: %v", err)
		}
		if err := errors.Join(x.Bind(addrPort(ip, 1000)), y.Bind(addrPort(other, 2000)),
			x.Connect(addrPort(other, 2000)), y.Connect(addrPort(ip, 1000))); err != nil {
			t.Fatal(err)
		}
		if !x.ev.seen(engine.EventConnected|engine.EventWritable) || x.ConnectResult() != nil {
			t.Error("no connected event")
		}
		if err := x.Connect(addrPort(other, 2000)); !errors.Is(err, engine.ErrInvalidState) {
			t.Errorf("second connect: %v", err)
		}
		big := bytes.Repeat([]byte("0123456789"), 6000) // many fragments
		for _, d := range [][]byte{[]byte("one"), {}, []byte("three"), big} {
			if n, err := x.Write(len(d), fillFrom(d)); n != len(d) || err != nil {
				t.Fatalf("write of %d: %d, %v", len(d), n, err)
			}
		}
		if n, err := x.Write(10, func([]byte) error { return io.EOF }); n != 0 || err != io.EOF {
			t.Errorf("failing fill: %d, %v", n, err)
		}
		if n, err := x.Write(65528, func([]byte) error { return nil }); n != 0 || !errors.Is(err, engine.ErrMessageTooLong) {
			t.Errorf("too long: %d, %v", n, err)
		}
		read := func(limit int, f func(int, func([]byte) int) (int, error)) string {
			var got []byte
			y.ev.until(t, "a datagram", func() bool {
				n, err := f(limit, func(p []byte) int { got = append(got, p...); return len(p) })
				if err != nil && !errors.Is(err, engine.ErrWouldBlock) || n != len(got) {
					t.Fatal(n, err)
				}
				return err == nil
			})
			return string(got)
		}
		if got := read(2, y.Peek); got != "on" {
			t.Errorf("peeked %q", got)
		}
		if got := read(100, y.Read); got != "one" {
			t.Errorf("read %q", got)
		}
		if got := read(100, y.Read); got != "" {
			t.Errorf("read %q of an empty datagram", got)
		}
		if got := read(2, y.Read); got != "th" { // the rest is lost
			t.Errorf("read %q", got)
		}
		if got := read(1<<20, y.Read); got != string(big) {
			t.Errorf("read %d bytes of %d", len(got), len(big))
		}
		if i := x.Info(); i.Queued != 60008 || i.Acked != 60008 || i.Local != addrPort(ip, 1000) || i.Remote != addrPort(other, 2000) || i.Protocol != engine.UDP {
			t.Errorf("%+v", i)
		}
		if i := y.Info(); i.Delivered != 60005 || i.SegmentsRecvd != 4 {
			t.Errorf("%+v", i)
		}
		if err := errors.Join(x.CloseWrite(), y.CloseRead()); err != nil {
			t.Error(err)
		}
		if _, err := x.Write(1, nil); !errors.Is(err, engine.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
		if _, err := y.Read(1, nil); !errors.Is(err, engine.ErrEndOfStream) {
			t.Errorf("read after close: %v", err)
		}
		if err := x.Listen(1); !errors.Is(err, engine.ErrNotSupported) {
			t.Errorf("listen: %v", err)
		}
		if _, err := x.Accept(nil); !errors.Is(err, engine.ErrNotSupported) {
			t.Errorf("accept: %v", err)
		}
		x.Close()
		x.Abort()
	}
}
