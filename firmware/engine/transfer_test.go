// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// pump sends n pseudo-random bytes, then a FIN, and returns their hash.
func pump(t testing.TB, c peer, n int, seed byte) []byte {
	sum := sha256.New()
	random := rand.NewChaCha8([32]byte{seed})
	chunk := make([]byte, 128<<10)
	for n > 0 {
		p := chunk[:min(len(chunk), n)]
		_, _ = random.Read(p)
		sum.Write(p)
		send(t, c, p)
		n -= len(p)
	}
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	return sum.Sum(nil)
}

// drain reads to the end of the stream.
func drain(t testing.TB, c peer, sum hash.Hash) (n int) {
	end := error(nil)
	c.ev.until(t, "the end of the stream", func() bool {
		for {
			k, err := c.Read(1<<20, func(p []byte) int { sum.Write(p); return len(p) })
			n += k
			if err != nil {
				end = err
				return !errors.Is(err, engine.ErrWouldBlock)
			}
		}
	})
	if !errors.Is(end, engine.ErrEndOfStream) {
		t.Errorf("the stream ended with %v after %d bytes", end, n)
	}
	return n
}

// exchange moves n bytes each way at once and compares hashes. Each
// connection has two users here, so its events go to both.
func exchange(t *testing.T, client, server peer, n int) {
	t.Helper()
	type result struct {
		name      string
		n         int
		sum, want []byte
	}
	halves := func(p peer) (reader, writer peer) {
		r, w := newEvents(), newEvents()
		p.ev.mu.Lock()
		p.ev.also = []*events{r, w}
		p.ev.mu.Unlock()
		r.Notify(engine.EventReadable)
		return peer{p.Endpoint, r}, peer{p.Endpoint, w}
	}
	cr, cw := halves(client)
	sr, sw := halves(server)
	done := make(chan result, 2)
	for i, d := range []struct {
		from, to peer
		name     string
	}{{cw, sr, "client to server"}, {sw, cr, "server to client"}} {
		sent := make(chan []byte, 1)
		go func() { sent <- pump(t, d.from, n, byte(i)) }()
		go func() {
			sum := sha256.New()
			k := drain(t, d.to, sum)
			done <- result{d.name, k, sum.Sum(nil), <-sent}
		}()
	}
	for range 2 {
		r := <-done
		if r.n != n || !bytes.Equal(r.sum, r.want) {
			t.Errorf("%s: %d bytes with hash %x, want %d with %x", r.name, r.n, r.sum, n, r.want)
		}
	}
	for _, p := range []peer{cw, sw} {
		p.ev.until(t, "acknowledgement of everything", func() bool { return p.Info().Acked == uint64(n) })
		if i := p.Info(); i.Queued != uint64(n) || i.Delivered != uint64(n) || i.Received != uint64(n) {
			t.Errorf("%+v, want %d each way", i, n)
		}
	}
}

// watch checks, as long as a transfer runs, that counts only grow and that no
// more is acknowledged than queued, nor delivered than received.
func watch(t *testing.T, p peer, stop chan struct{}) {
	var last engine.Info
	for {
		select {
		case <-stop:
			return
		default:
		}
		i := p.Info()
		if i.Acked > i.Queued || i.Delivered > i.Received || i.Acked < last.Acked || i.Queued < last.Queued || i.Received < last.Received || i.Delivered < last.Delivered {
			t.Errorf("%+v after %+v", i, last)
			return
		}
		last = i
		yield()
	}
}

func TestBulkBothWays(t *testing.T) {
	n := 64 << 20
	if raceEnabled {
		n = 8 << 20
	}
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	client, server := connected(t, a, b)
	stop := make(chan struct{})
	var watchers sync.WaitGroup
	for _, p := range []peer{client, server} {
		watchers.Go(func() { watch(t, p, stop) })
	}
	exchange(t, client, server, n)
	close(stop)
	watchers.Wait()
	// A busy machine may take longer than a retransmission timer, but rarely.
	if s := b.Stats(); s.Retransmits > s.SegmentsSent/200 && !raceEnabled {
		t.Errorf("%d retransmissions of %d segments on a wire without loss", s.Retransmits, s.SegmentsSent)
	}
}

func TestLossyTransfer(t *testing.T) {
	for _, rack := range []bool{false, true} {
		for _, o := range []enginetest.PipeOptions{{Loss: 0.01, Seed: 1}, {Loss: 0.03, Seed: 2}, {Reorder: 0.05, Seed: 3}, {Loss: 0.01, Reorder: 0.01, Seed: 4, MTU: 9000}} {
			start := time.Now()
			a, b := twoEngines(t, o, func(c *engine.Config) { c.RACK = rack })
			client, server := connected(t, a, b)
			exchange(t, client, server, 2<<20)
			if d := time.Since(start); d > patience {
				t.Errorf("RACK %v, %+v: took %v", rack, o, d)
			}
			if s := a.Stats(); o.Loss > 0 && s.Retransmits+b.Stats().Retransmits == 0 {
				t.Errorf("RACK %v, %+v: no retransmissions", rack, o)
			}
		}
	}
}

// A fill that fails in its middle chunk loses the whole chunk and nothing
// else, whatever the error is: an end of file is one of them.
func TestFillError(t *testing.T) {
	for _, failure := range []error{io.EOF, io.ErrUnexpectedEOF, errors.New("no such memory")} {
		a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
		client, server := connected(t, a, b)
		calls := 0
		n, err := client.Write(200<<10, func(p []byte) error {
			if calls++; calls == 3 {
				return failure
			}
			for i := range p {
				p[i] = byte(calls)
			}
			return nil
		})
		if err != failure || n != 128<<10 {
			t.Fatalf("%v: write answers %d, %v", failure, n, err)
		}
		send(t, client, []byte("after"))
		got := receive(t, server, 128<<10+5)
		want := append(bytes.Repeat([]byte{1}, 64<<10), bytes.Repeat([]byte{2}, 64<<10)...)
		if !bytes.Equal(got, append(want, "after"...)) {
			t.Errorf("%v: other bytes arrived", failure)
		}
		if q := client.Info().Queued; q != 128<<10+5 {
			t.Errorf("%v: %d queued", failure, q)
		}
	}
}

func TestPeekAndPartialReads(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	client, server := connected(t, a, b)
	send(t, client, []byte("GET / HTTP"))
	send(t, client, []byte("/1.1\r\n"))
	server.ev.until(t, "all bytes", func() bool { return server.Info().Received == 16 })
	var peeked []byte
	keep := func(p []byte) int { peeked = append(peeked, p...); return len(p) }
	if n, err := server.Peek(12, keep); n != 12 || err != nil || string(peeked) != "GET / HTTP/1" {
		t.Errorf("peek %d, %v, %q", n, err, peeked)
	}
	if n, err := server.Peek(0, keep); n != 0 || err != nil {
		t.Errorf("peek of nothing: %d, %v", n, err)
	}
	if n, err := server.Read(100, func([]byte) int { return 0 }); n != 0 || err != nil {
		t.Errorf("a reader that takes nothing: %d, %v", n, err)
	}
	if n, err := server.Read(100, func(p []byte) int { return len(p) + 5 }); n != 16 || err != nil {
		t.Errorf("a reader that claims more: %d, %v", n, err)
	}
	send(t, client, []byte("0123456789"))
	var got []byte
	server.ev.until(t, "bytes in pieces of three", func() bool {
		for len(got) < 10 {
			n, err := server.Read(100, func(p []byte) int { k := min(3, len(p)); got = append(got, p[:k]...); return k })
			if errors.Is(err, engine.ErrWouldBlock) {
				return false
			}
			if err != nil || n < 1 || n > 3 {
				t.Fatal(n, err)
			}
		}
		return true
	})
	if string(got) != "0123456789" {
		t.Errorf("read %q", got)
	}
	if i := server.Info(); i.Delivered != 26 || i.Received != 26 {
		t.Errorf("%+v", i)
	}
}

// When nobody reads, the sender is held up and nothing is lost.
func TestWindowCloses(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	l := open(t, a, engine.TCP, false)
	if err := l.Bind(addrPort(netip.Addr{}, 80)); err != nil {
		t.Fatal(err)
	}
	// Accepted connections have the size that the listener had at Listen.
	if err := l.SetOption(engine.OptReceiveWindow, 32<<10); err != nil {
		t.Fatal(err)
	}
	if err := l.Listen(1); err != nil {
		t.Fatal(err)
	}
	client := connect(t, b, false, addrPort(a.v4, 80))
	server := accept(t, l)
	if err := client.SetOption(engine.OptSendBuffer, 64<<10); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(data)
	n, err := client.Write(len(data), fillFrom(data))
	if !errors.Is(err, engine.ErrWouldBlock) || n >= len(data) {
		t.Fatalf("the sender queued %d, %v", n, err)
	}
	client.ev.until(t, "the window to close", func() bool { return client.Info().SendWindow < 2000 && client.Info().Acked > 0 })
	if i := server.Info(); i.Received > 128<<10 {
		t.Errorf("a window of 32 KiB let %d bytes in", i.Received)
	}
	go func() { send(t, client, data[n:]) }()
	if got := receive(t, server, len(data)); !bytes.Equal(got, data) {
		t.Error("other bytes arrived")
	}
}
