// SPDX-License-Identifier: Apache-2.0

package port

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"toebox/firmware/engine"
)

// udpChecksumOffset is where the checksum stands in a UDP header (RFC 768).
const udpChecksumOffset = 6

// Our tunables.
const (
	// defaultSnapLen is the most that is kept of a frame: all of it, even of
	// a frame that stands for many.
	defaultSnapLen = 128 << 10
	// captureBuffer bounds the frames that the writer has not taken, bytes.
	captureBuffer = 16 << 20
	// packetRoom is more than a packet block needs beside data and comment.
	packetRoom = 96
	// maxComment bounds a packet's comment, in bytes.
	maxComment = 4096
	// closeWait bounds how long Close waits for a writer that does not move.
	closeWait = 5 * time.Second
)

// CaptureOptions describe a capture. The zero value is the usual one.
type CaptureOptions struct {
	// Name of the interface. Default "adapter".
	Name string
	// Hardware, OS and Application are the section's strings. Defaults:
	// "toebox adapter", the host's operating system and architecture, "toebox".
	Hardware, OS, Application string
	// SnapLen is the most that is kept of a frame, in bytes. Default: all.
	SnapLen int
	// Buffer bounds the bytes that wait for the writer. Default 16 MiB.
	Buffer int
	// Now is the clock of the timestamps. Default: time.Now.
	Now func() time.Time
	// Comment gives a frame its comment, or none. It is called on the data
	// path, one frame at a time, and must not keep the frame.
	Comment func(Direction, *engine.Frame) string
}

// CapturePort is a port whose frames are recorded.
type CapturePort struct {
	inner engine.Port
	w     io.Writer
	opt   CaptureOptions
	start time.Time
	wake  chan struct{} // holds a token while the writer has something to do
	done  chan struct{} // closed by the writer when it ends

	mu     sync.Mutex
	out    ng // blocks that the writer has not taken
	frames uint64
	missed uint64
	gap    uint64 // missed since the last recorded frame
	closed bool
	err    error // of the first write that failed; nothing is recorded after it
}

var _ engine.Port = (*CapturePort)(nil)

// Capture records the frames of p, both ways, to w in pcapng. What the adapter
// transmits is outbound. Frames are recorded as they pass p: large ones as
// one, with checksums completed. The data path never waits for w: when w does
// not keep up, frames are missed, and counted in the file. Close closes p and
// finishes the file, but does not close w.
func Capture(p engine.Port, w io.Writer, o CaptureOptions) *CapturePort {
	str := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	str(&o.Name, "adapter")
	str(&o.Hardware, "toebox adapter")
	str(&o.OS, runtime.GOOS+"/"+runtime.GOARCH)
	str(&o.Application, "toebox")
	if o.SnapLen <= 0 || o.SnapLen > defaultSnapLen {
		o.SnapLen = defaultSnapLen
	}
	if o.Buffer <= 0 {
		o.Buffer = captureBuffer
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &CapturePort{inner: p, w: w, opt: o, start: o.Now(), wake: make(chan struct{}, 1), done: make(chan struct{})}
	c.out.header(&o)
	c.kick()
	go c.write()
	return c
}

// MTU implements engine.Port.
func (c *CapturePort) MTU() int { return c.inner.MTU() }

// Attach implements engine.Port.
func (c *CapturePort) Attach(receive func([]engine.Frame)) {
	if receive == nil {
		c.inner.Attach(nil)
		return
	}
	c.inner.Attach(func(frames []engine.Frame) {
		c.record(Inbound, frames)
		receive(frames)
	})
}

// Transmit implements engine.Port. Frames that the port drops are recorded too.
func (c *CapturePort) Transmit(frames []engine.Frame) int {
	c.record(Outbound, frames)
	return c.inner.Transmit(frames)
}

// Missed is the number of frames that passed without being recorded.
func (c *CapturePort) Missed() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.missed
}

// Close closes the port and finishes the file. The error is the port's, or says
// why the file is not complete.
func (c *CapturePort) Close() error {
	err := c.inner.Close()
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		c.out.statistics(c.start, c.opt.Now(), c.frames, c.missed)
	}
	c.mu.Unlock()
	c.kick()
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-c.done:
	case <-t.C:
		return errors.Join(err, errors.New("port: capture: writer does not take the rest"))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		err = errors.Join(err, fmt.Errorf("port: capture: %w", c.err))
	}
	return err
}

func (c *CapturePort) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// record appends the frames to the buffer.
func (c *CapturePort) record(d Direction, frames []engine.Frame) {
	c.mu.Lock()
	for i := range frames {
		c.recordLocked(d, &frames[i])
	}
	c.mu.Unlock()
	c.kick()
}

func (c *CapturePort) recordLocked(d Direction, f *engine.Frame) {
	if c.closed {
		return
	}
	c.frames++
	size := f.Len()
	if c.err != nil || len(c.out.b)+size+packetRoom+maxComment > c.opt.Buffer {
		c.missed++
		c.gap++
		return
	}
	w := &c.out
	at := w.begin(blockPacket)
	w.u32(0) // interface
	w.time(c.opt.Now())
	w.u32(uint32(min(size, c.opt.SnapLen)))
	w.u32(uint32(size))
	data := len(w.b)
	for _, p := range f.Data {
		w.b = append(w.b, p...)
	}
	completeChecksum(w.b[data:], f)
	w.b = w.b[:data+min(size, c.opt.SnapLen)]
	w.pad()
	w.u16(packetFlags)
	w.u16(4)
	w.u32(uint32(d))
	if c.gap > 0 {
		w.option64(packetDrops, c.gap)
		c.gap = 0
	}
	if c.opt.Comment != nil {
		s := c.opt.Comment(d, f)
		w.option(optionComment, s[:min(len(s), maxComment)])
	}
	w.optionEnd()
	w.end(at)
}

// completeChecksum finishes a partial transport checksum in b, a copy of f.
func completeChecksum(b []byte, f *engine.Frame) {
	if !f.NeedsChecksum {
		return
	}
	start, field := int(f.ChecksumStart), int(f.ChecksumStart)+int(f.ChecksumOffset)
	if start >= len(b) || field+2 > len(b) {
		return // nonsense, which the capture shows as it is
	}
	// The field holds the pseudo header's sum and so takes part in the sum.
	sum := ^checksum.Checksum(b[start:], 0)
	if sum == 0 && f.ChecksumOffset == udpChecksumOffset {
		sum = 0xffff // RFC 768: zero would mean that there is none
	}
	binary.BigEndian.PutUint16(b[field:], sum)
}

// write hands the buffer to w, as it is filled, until Close. What comes in
// during a write goes out with the next one, so nothing waits for a timer.
func (c *CapturePort) write() {
	defer close(c.done)
	var spare []byte
	for range c.wake {
		c.mu.Lock()
		b, closed := c.out.b, c.closed
		c.out.b = spare[:0]
		c.mu.Unlock()
		if len(b) > 0 {
			if _, err := c.w.Write(b); err != nil {
				c.mu.Lock()
				if c.err == nil {
					c.err = err
				}
				c.mu.Unlock()
			}
		}
		spare = b
		if closed {
			return
		}
	}
}
