// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// A Role is the side of a session.
type Role uint32

// The host opens odd streams, the guest even ones.
const (
	Host  Role = 1
	Guest Role = 0
)

// A Handler serves one stream the other side opened and returns its result. The
// context ends with the stream or the session.
type Handler func(ctx context.Context, st *Stream) Result

// Config is what a session needs besides its connection.
type Config struct {
	Role    Role
	Info    map[string]string // to say hello with
	Handler Handler           // nil refuses every stream
}

// A Session is one side of a control channel.
type Session struct {
	conn   io.ReadWriteCloser
	cfg    Config
	ctx    context.Context
	cancel context.CancelCauseFunc
	said   chan struct{} // closed when our hello is out: nothing goes before it
	hello  chan struct{} // closed when the peer's hello is in
	peer   Hello         // valid then
	done   chan struct{} // closed when the reader has ended
	wg     sync.WaitGroup

	writing sync.Mutex // one frame at a time; never held with mu
	out     []byte

	mu      sync.Mutex
	streams map[uint32]*Stream
	nextID  uint32 // of our next stream
	lastID  uint32 // highest the peer has opened
	ours    int
}

// New starts a session that owns conn.
func New(conn io.ReadWriteCloser, cfg Config) *Session {
	s := &Session{
		conn: conn, cfg: cfg,
		said: make(chan struct{}), hello: make(chan struct{}), done: make(chan struct{}),
		streams: map[uint32]*Stream{},
		nextID:  2 - uint32(cfg.Role),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		// The guest does not know when the host's end of its port is connected, or
		// connected anew: what it says before the host does may be lost.
		if cfg.Role == Guest {
			select {
			case <-s.hello:
			case <-s.ctx.Done():
				return
			}
		}
		// A peer that does not read must not keep us from reading.
		if err := s.sendJSON(frameHello, 0, Hello{Version: version, Info: cfg.Info}); err != nil {
			s.fail(err)
			return
		}
		close(s.said)
	}()
	go s.read()
	return s
}

// Hello waits until both sides have said hello and returns the other side's.
func (s *Session) Hello(ctx context.Context) (Hello, error) {
	for _, c := range []chan struct{}{s.hello, s.said} {
		select {
		case <-c:
		case <-s.ctx.Done():
			return Hello{}, s.Err()
		case <-ctx.Done():
			return Hello{}, context.Cause(ctx)
		}
	}
	return s.peer, nil
}

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.ctx.Done() }

// Err says why the session ended, nil while it has not.
func (s *Session) Err() error { return context.Cause(s.ctx) }

// Close ends the session and waits for its handlers.
func (s *Session) Close() error {
	s.fail(net.ErrClosed)
	<-s.done
	s.wg.Wait()
	return nil
}

// fail ends the session for a reason; the first one stays.
func (s *Session) fail(err error) {
	s.cancel(fmt.Errorf("control: %w", err))
	s.conn.Close() //nolint:errcheck // the session is over anyway
}

// Open opens a stream on the other side.
func (s *Session) Open(ctx context.Context, r Request) (*Stream, error) {
	b, err := marshal(r)
	if err != nil {
		return nil, err
	}
	if _, err := s.Hello(ctx); err != nil {
		return nil, err
	}
	// Ids must go out in order, so the frame leaves under the writers' lock.
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	if s.ours == maxStreams {
		s.mu.Unlock()
		return nil, errors.New("control: too many streams")
	}
	st := newStream(s, s.nextID, r)
	s.nextID += 2
	s.ours++
	s.streams[st.id] = st
	s.mu.Unlock()
	if s.Err() != nil {
		st.end(Result{}, s.Err())
		return nil, s.Err()
	}
	if err := s.sendLocked(frameOpen, 0, st.id, b); err != nil {
		st.end(Result{}, err)
		return nil, err
	}
	return st, nil
}

// marshal encodes v, which must fit a frame.
func marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if len(b) > maxPayload {
		return nil, fmt.Errorf("control: %d bytes do not fit a frame", len(b))
	}
	return b, nil
}

func (s *Session) sendJSON(kind frameType, stream uint32, v any) error {
	b, err := marshal(v)
	if err != nil {
		return err
	}
	return s.send(kind, 0, stream, b)
}

func (s *Session) send(kind frameType, channel uint8, stream uint32, payload []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.sendLocked(kind, channel, stream, payload)
}

func (s *Session) sendLocked(kind frameType, channel uint8, stream uint32, payload []byte) error {
	if err := s.Err(); err != nil {
		return err
	}
	s.out = appendFrame(s.out[:0], kind, channel, stream, payload)
	if _, err := s.conn.Write(s.out); err != nil {
		s.fail(err)
		return s.Err()
	}
	return nil
}

// read takes frames in until the session ends.
func (s *Session) read() {
	defer close(s.done)
	r := bufio.NewReaderSize(s.conn, 64<<10)
	buf := make([]byte, headerSize+maxPayload)
	for {
		f, err := readFrame(r, buf)
		if err == nil {
			err = s.take(f)
		}
		if err != nil {
			s.fail(err)
			break
		}
	}
	s.mu.Lock()
	all := make([]*Stream, 0, len(s.streams))
	for _, st := range s.streams {
		all = append(all, st)
	}
	s.mu.Unlock()
	for _, st := range all {
		st.end(Result{}, s.Err())
	}
}

var errOrder = errors.New("frames out of order")

// take acts on one frame; an error breaks the session.
func (s *Session) take(f frame) error {
	select {
	case <-s.hello:
		if f.kind == frameHello {
			return errOrder
		}
	default:
		if f.kind != frameHello {
			return errOrder
		}
		if err := json.Unmarshal(f.payload, &s.peer); err != nil {
			return fmt.Errorf("hello: %w", err)
		}
		if s.peer.Version != version {
			return fmt.Errorf("the other side speaks version %d, want %d", s.peer.Version, version)
		}
		close(s.hello)
		return nil
	}
	if f.kind == frameOpen {
		return s.accept(f)
	}
	s.mu.Lock()
	st, known := s.streams[f.stream], s.knownLocked(f.stream)
	s.mu.Unlock()
	if st == nil {
		if known {
			return nil // crossed our close
		}
		return fmt.Errorf("frame for stream %d, which was never opened", f.stream)
	}
	switch f.kind {
	case frameData:
		return st.in[f.channel].put(f.payload)
	case frameEnd:
		st.in[f.channel].finish(io.EOF)
	case frameCredit:
		if len(f.payload) != 4 {
			return fmt.Errorf("credit of %d bytes", len(f.payload))
		}
		return st.credit[f.channel].add(binary.LittleEndian.Uint32(f.payload))
	case frameMessage:
		var m Message
		if err := json.Unmarshal(f.payload, &m); err != nil {
			return fmt.Errorf("message: %w", err)
		}
		select {
		case st.messages <- m:
		default:
			return errors.New("too many messages")
		}
	case frameClose:
		var r Result
		if err := json.Unmarshal(f.payload, &r); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		st.end(r, nil)
	}
	return nil
}

// knownLocked says whether a stream of this id was ever opened.
func (s *Session) knownLocked(id uint32) bool {
	if id%2 == uint32(s.cfg.Role) {
		return id < s.nextID
	}
	return id <= s.lastID
}

// accept starts the handler of a stream the other side opens.
func (s *Session) accept(f frame) error {
	var r Request
	if err := json.Unmarshal(f.payload, &r); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.stream%2 == uint32(s.cfg.Role) || f.stream <= s.lastID {
		return fmt.Errorf("open: stream %d is not the other side's next", f.stream)
	}
	if len(s.streams)-s.ours >= maxStreams {
		return errors.New("open: too many streams")
	}
	s.lastID = f.stream
	st := newStream(s, f.stream, r)
	s.streams[f.stream] = st
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		if s.cfg.Handler == nil {
			st.Close(Result{Status: 127, Error: "this side takes no requests"})
			return
		}
		st.Close(s.cfg.Handler(st.ctx, st))
	}()
	return nil
}

// forget drops an ended stream.
func (s *Session) forget(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[st.id] != st {
		return
	}
	delete(s.streams, st.id)
	if st.id%2 == uint32(s.cfg.Role) {
		s.ours--
	}
}
