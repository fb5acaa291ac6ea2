// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

// A Stream is one request with its channels and, in the end, its result.
type Stream struct {
	s        *Session
	id       uint32
	request  Request
	in       [channels]inbox
	credit   [channels]credit
	messages chan Message
	ctx      context.Context
	cancel   context.CancelFunc

	once   sync.Once
	result Result // valid when ctx is done
	err    error
}

func newStream(s *Session, id uint32, r Request) *Stream {
	st := &Stream{s: s, id: id, request: r, messages: make(chan Message, maxMessages)}
	st.ctx, st.cancel = context.WithCancel(s.ctx)
	for i := range channels {
		st.in[i].init()
		st.credit[i].init()
	}
	return st
}

// Request returns what the stream was opened with.
func (st *Stream) Request() Request { return st.request }

// Messages delivers the other side's messages. It is never closed: wait for the
// context beside it.
func (st *Stream) Messages() <-chan Message { return st.messages }

// Send sends a message to the stream's handler.
func (st *Stream) Send(m Message) error {
	return st.s.sendJSON(frameMessage, st.id, m)
}

// Done is closed when the stream has ended.
func (st *Stream) Done() <-chan struct{} { return st.ctx.Done() }

// Result waits for the other side's result.
func (st *Stream) Result(ctx context.Context) (Result, error) {
	select {
	case <-st.ctx.Done():
		// The session's end reaches the context before the stream: settle which it was.
		st.end(Result{}, st.s.Err())
		return st.result, st.err
	case <-ctx.Done():
		return Result{}, context.Cause(ctx)
	}
}

// Close ends the stream with a result; only the first end of either side counts.
func (st *Stream) Close(r Result) {
	first := false
	st.once.Do(func() {
		first = true
		st.finish(r, nil)
	})
	if !first {
		return
	}
	b, err := marshal(r)
	if err != nil {
		b, _ = marshal(Result{Status: 1, Error: "result too large"}) //nolint:errcheck // it fits
	}
	st.s.send(frameClose, 0, st.id, b) //nolint:errcheck // the session tells its end to all
	st.s.forget(st)
}

// end notes the other side's result, or the session's error.
func (st *Stream) end(r Result, err error) {
	st.once.Do(func() {
		st.finish(r, err)
		st.s.forget(st)
	})
}

func (st *Stream) finish(r Result, err error) {
	st.result, st.err = r, err
	why := err
	if why == nil {
		why = io.EOF
	}
	for i := range channels {
		st.in[i].finish(why)
		st.credit[i].finish()
	}
	st.cancel()
}

// Reader returns the incoming direction of a channel.
func (st *Stream) Reader(channel int) io.Reader { return reader{st, uint8(channel)} }

// Writer returns the outgoing direction of a channel; closing it tells the reader
// that no more comes.
func (st *Stream) Writer(channel int) io.WriteCloser { return writer{st, uint8(channel)} }

type reader struct {
	st      *Stream
	channel uint8
}

// Read returns what is there, and gives the sender that much more credit.
func (r reader) Read(p []byte) (int, error) {
	n, grant, err := r.st.in[r.channel].get(p)
	if grant > 0 && r.st.ctx.Err() == nil {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], uint32(grant))
		r.st.s.send(frameCredit, r.channel, r.st.id, b[:]) //nolint:errcheck // the session tells its end to all
	}
	return n, err
}

type writer struct {
	st      *Stream
	channel uint8
}

func (w writer) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n := w.st.credit[w.channel].take(min(len(p)-sent, maxPayload))
		if n == 0 {
			return sent, io.ErrClosedPipe
		}
		if err := w.st.s.send(frameData, w.channel, w.st.id, p[sent:sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

func (w writer) Close() error {
	if w.st.ctx.Err() != nil {
		return nil
	}
	return w.st.s.send(frameEnd, w.channel, w.st.id, nil)
}

// An inbox holds what came in on a channel and was not read yet.
type inbox struct {
	mu    sync.Mutex
	some  sync.Cond
	buf   []byte
	owed  int // bytes read that the sender has no credit for yet
	final error
}

func (b *inbox) init() { b.some.L = &b.mu }

var (
	errWindow = errors.New("data beyond its credit")
	errCredit = errors.New("credit beyond the window")
)

func (b *inbox) put(p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.final != nil {
		return nil // crossed a close, or came after the end
	}
	if len(b.buf)+b.owed+len(p) > window {
		return errWindow
	}
	b.buf = append(b.buf, p...)
	b.some.Broadcast()
	return nil
}

// get waits for data or the end. Credit is given back in pieces of a quarter window,
// so that small reads do not cost a frame each.
func (b *inbox) get(p []byte) (n, grant int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(p) == 0 {
		return 0, 0, nil
	}
	for len(b.buf) == 0 && b.final == nil {
		b.some.Wait()
	}
	if len(b.buf) == 0 {
		return 0, 0, b.final
	}
	n = copy(p, b.buf)
	b.buf = append(b.buf[:0], b.buf[n:]...)
	b.owed += n
	if b.owed >= window/4 {
		grant, b.owed = b.owed, 0
	}
	return n, grant, nil
}

func (b *inbox) finish(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.final == nil {
		b.final = err
		b.some.Broadcast()
	}
}

// credit is how many bytes may still go out on a channel.
type credit struct {
	mu   sync.Mutex
	some sync.Cond
	n    int
	over bool
}

func (c *credit) init() { c.some.L, c.n = &c.mu, window }

func (c *credit) add(n uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > window || c.n+int(n) > window {
		return errCredit
	}
	c.n += int(n)
	c.some.Broadcast()
	return nil
}

// take waits for credit and uses up to most of it; 0 says the stream is over.
func (c *credit) take(most int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.n == 0 && !c.over {
		c.some.Wait()
	}
	if c.over {
		return 0
	}
	n := min(c.n, most)
	c.n -= n
	return n
}

func (c *credit) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.some.Broadcast()
}
