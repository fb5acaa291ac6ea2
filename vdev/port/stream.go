// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"toebox/firmware/engine"
)

// The framing of QEMU's -netdev stream (net/stream.c), which passt speaks too:
// each frame behind its length, 32 bits, big-endian.
const streamPrefix = 4

// Our tunables.
const (
	// streamBuffer bounds the bytes that wait for the socket.
	streamBuffer = 16 << 20
	// streamFrame is the longest frame that is accepted, bytes.
	streamFrame = header.EthernetMinimumSize + maxGSO
)

// StreamStats are the totals of a [Stream].
type StreamStats struct {
	FramesFromAdapter, FramesToAdapter uint64
	DroppedFull                        uint64 // the socket does not keep up
	DroppedLong                        uint64 // of the adapter: longer than the framing's other end takes
	DroppedNotAttached                 uint64 // nobody receives
}

// Stream is a port on a stream socket.
type Stream struct {
	conn net.Conn
	mtu  int
	wake chan struct{} // holds a token while the writer has something to do
	end  chan struct{} // closed when the stream ends
	wg   sync.WaitGroup

	fromAdapter, toAdapter, full, long, notAttached atomic.Uint64

	receiveMu sync.Mutex // held while receive runs
	receive   func([]engine.Frame)

	mu  sync.Mutex
	out []byte // framed, not taken by the writer yet
	err error  // why the stream ended
}

var _ engine.Port = (*Stream)(nil)

// NewStream makes a port of c, which it owns from here. Frames that stand for
// many are cut, since the framing has no place for offload metadata.
func NewStream(c net.Conn, mtu int) (*Stream, error) {
	if mtu < header.IPv6MinimumMTU || mtu > maxGSO {
		c.Close()
		return nil, fmt.Errorf("port: stream: mtu %d: not in [%d, %d]", mtu, header.IPv6MinimumMTU, maxGSO)
	}
	s := &Stream{conn: c, mtu: mtu, wake: make(chan struct{}, 1), end: make(chan struct{})}
	s.wg.Add(2)
	go s.read()
	go s.write()
	return s, nil
}

// MTU implements engine.Port.
func (s *Stream) MTU() int { return s.mtu }

// Attach implements engine.Port.
func (s *Stream) Attach(receive func([]engine.Frame)) {
	s.receiveMu.Lock()
	defer s.receiveMu.Unlock()
	s.receive = receive
}

// Transmit implements engine.Port. It never waits.
func (s *Stream) Transmit(frames []engine.Frame) int {
	taken := 0
	for i := range frames {
		if s.transmitOne(&frames[i]) {
			taken++
		}
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return taken
}

func (s *Stream) transmitOne(f *engine.Frame) bool {
	if f.Len() > streamFrame {
		s.long.Add(1)
		return false
	}
	parts := split(f)
	need := 0
	for _, b := range parts {
		need += streamPrefix + len(b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || len(s.out)+need > streamBuffer {
		s.full.Add(1)
		return false
	}
	for _, b := range parts {
		s.out = append(binary.BigEndian.AppendUint32(s.out, uint32(len(b))), b...)
	}
	s.fromAdapter.Add(uint64(len(parts)))
	return true
}

// Stats returns the totals so far.
func (s *Stream) Stats() StreamStats {
	return StreamStats{
		FramesFromAdapter: s.fromAdapter.Load(), FramesToAdapter: s.toAdapter.Load(),
		DroppedFull: s.full.Load(), DroppedLong: s.long.Load(), DroppedNotAttached: s.notAttached.Load(),
	}
}

// Done is closed when the stream has ended; Err then says why.
func (s *Stream) Done() <-chan struct{} { return s.end }

// Err is what ended the stream: io.EOF when the other side did, net.ErrClosed
// after Close, nil while it runs.
func (s *Stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the stream. Frames that were not written yet are lost.
func (s *Stream) Close() error {
	s.fail(net.ErrClosed)
	s.wg.Wait()
	return nil
}

// fail ends the stream, once.
func (s *Stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = err
	s.out = nil
	close(s.end)
	s.conn.Close()
}

// write hands what is queued to the socket; what comes in meanwhile goes with
// the next write.
func (s *Stream) write() {
	defer s.wg.Done()
	var spare []byte
	for {
		select {
		case <-s.wake:
		case <-s.end:
			return
		}
		s.mu.Lock()
		b := s.out
		s.out = spare[:0]
		s.mu.Unlock()
		if len(b) > 0 {
			if _, err := s.conn.Write(b); err != nil {
				s.fail(fmt.Errorf("port: stream: %w", err))
				return
			}
		}
		spare = b
	}
}

// read hands frames to the adapter, all that one read brought in one call.
func (s *Stream) read() {
	defer s.wg.Done()
	const ahead = 4 * streamFrame
	r := bufio.NewReaderSize(s.conn, ahead)
	// One frame, and all that was read with its end.
	buf := make([]byte, 0, streamFrame+ahead)
	var frames [frameBatch]engine.Frame
	for {
		buf = buf[:0]
		n := 0
		for n == 0 || n < len(frames) && s.buffered(r) {
			f, err := readFrame(r, buf)
			if err != nil {
				s.fail(err)
				return
			}
			frames[n] = engine.Frame{Data: append(frames[n].Data[:0], f)}
			buf = buf[:len(buf)+len(f)]
			n++
		}
		s.deliver(frames[:n])
	}
}

// buffered says whether a whole frame can be read without waiting.
func (s *Stream) buffered(r *bufio.Reader) bool {
	if r.Buffered() < streamPrefix {
		return false
	}
	p, _ := r.Peek(streamPrefix)
	return uint64(r.Buffered()) >= streamPrefix+uint64(binary.BigEndian.Uint32(p))
}

var errFrameLength = errors.New("port: stream: bad frame length")

// readFrame reads one frame into the free end of buf.
func readFrame(r io.Reader, buf []byte) ([]byte, error) {
	var p [streamPrefix]byte
	if _, err := io.ReadFull(r, p[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(p[:])
	if n < header.EthernetMinimumSize || n > streamFrame || int(n) > cap(buf)-len(buf) {
		return nil, errFrameLength
	}
	b := buf[len(buf) : len(buf)+int(n)]
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

func (s *Stream) deliver(frames []engine.Frame) {
	s.receiveMu.Lock()
	defer s.receiveMu.Unlock()
	if s.receive == nil {
		s.notAttached.Add(uint64(len(frames)))
		return
	}
	s.toAdapter.Add(uint64(len(frames)))
	s.receive(frames)
}
