// SPDX-License-Identifier: Apache-2.0

package enginetest

import (
	"math/rand/v2"
	"sync"

	"toebox/firmware/engine"
)

// PipeOptions are the properties of a pair of ports.
type PipeOptions struct {
	MTU  int     // bytes; 0 means 1500
	Loss float64 // share of frames longer than a TCP header that are lost
	// Reorder is the share of frames that are delivered after the one that
	// follows them.
	Reorder float64
	Seed    uint64
	// Drop, if set, sees each frame with the port (0 or 1) it was sent on, in
	// one piece; true loses it. It must not keep the slice.
	Drop func(port int, frame []byte) bool
}

// Limits of a port's queue.
const (
	maxQueuedFrames = 1 << 16
	maxQueuedBytes  = 256 << 20
	// lossy is the length from which frames are lost: those with data.
	lossy = 100
)

// Pipe returns two ports that are joined: what one sends the other receives,
// offloads and all. Each direction has a goroutine and a queue; a full queue
// drops, since blocking could stop both directions for good (each receiver
// sends, too).
func Pipe(o PipeOptions) (*PipePort, *PipePort) {
	if o.MTU == 0 {
		o.MTU = 1500
	}
	a, b := newPipePort(o, 0), newPipePort(o, 1)
	a.peer, b.peer = b, a
	return a, b
}

// PipePort is one end of a [Pipe].
type PipePort struct {
	opts  PipeOptions
	index int
	peer  *PipePort

	mu       sync.Mutex
	wake     sync.Cond // queue, receive
	queue    []queued
	bytes    int
	random   *rand.Rand
	held     *queued // to be delivered after the next
	receive  func([]engine.Frame)
	attached chan struct{} // closed when the receiver's goroutine has ended
	dropped  uint64
	busy     bool   // frames are being received
	batches  uint64 // of frames that were
	pool     sync.Pool
}

type queued struct {
	frame engine.Frame
	mem   *[]byte
}

var _ engine.Port = (*PipePort)(nil)

func newPipePort(o PipeOptions, index int) *PipePort {
	p := &PipePort{opts: o, index: index, random: rand.New(rand.NewPCG(o.Seed, uint64(index)))}
	p.wake.L = &p.mu
	p.pool.New = func() any { return new([]byte) }
	return p
}

// MTU of the link.
func (p *PipePort) MTU() int { return p.opts.MTU }

// Attach starts the delivery of frames, or with nil ends it.
func (p *PipePort) Attach(receive func([]engine.Frame)) {
	if receive != nil {
		p.mu.Lock()
		p.receive = receive
		p.attached = make(chan struct{})
		p.mu.Unlock()
		go p.deliver(receive, p.attached)
		return
	}
	p.mu.Lock()
	ended := p.attached
	p.receive = nil
	p.wake.Broadcast()
	p.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// Transmit copies frames into the peer's queue.
func (p *PipePort) Transmit(frames []engine.Frame) int {
	for i := range frames {
		p.peer.enqueue(p.index, &frames[i])
	}
	return len(frames)
}

// enqueue takes a frame that was sent on port from.
func (p *PipePort) enqueue(from int, f *engine.Frame) {
	mem := p.pool.Get().(*[]byte)
	data := (*mem)[:0]
	for _, piece := range f.Data {
		data = append(data, piece...)
	}
	*mem = data
	q := queued{frame: *f, mem: mem}
	q.frame.Data = [][]byte{data}
	p.mu.Lock()
	defer p.mu.Unlock()
	lost := p.opts.Drop != nil && p.opts.Drop(from, data) ||
		len(data) > lossy && p.opts.Loss > 0 && p.random.Float64() < p.opts.Loss
	if lost || p.receive == nil || len(p.queue) >= maxQueuedFrames || p.bytes+len(data) > maxQueuedBytes {
		p.dropped++
		p.pool.Put(mem)
		return
	}
	if p.held == nil && len(data) > lossy && p.opts.Reorder > 0 && p.random.Float64() < p.opts.Reorder {
		p.held = &q
		return
	}
	p.push(q)
	if p.held != nil {
		p.push(*p.held)
		p.held = nil
	}
}

func (p *PipePort) push(q queued) {
	p.queue = append(p.queue, q)
	p.bytes += len(*q.mem)
	p.wake.Signal()
}

func (p *PipePort) deliver(receive func([]engine.Frame), ended chan struct{}) {
	defer close(ended)
	var spare []queued
	var frames []engine.Frame
	for {
		p.mu.Lock()
		for len(p.queue) == 0 && p.receive != nil {
			p.wake.Wait()
		}
		if p.receive == nil {
			p.queue, p.bytes, p.held = nil, 0, nil
			p.mu.Unlock()
			return
		}
		batch := p.queue
		p.queue, p.bytes = spare[:0], 0
		p.busy = true
		p.batches++
		p.mu.Unlock()
		frames = frames[:0]
		for i := range batch {
			frames = append(frames, batch[i].frame)
		}
		receive(frames)
		for i := range batch {
			p.pool.Put(batch[i].mem)
			batch[i] = queued{}
		}
		spare = batch
		p.mu.Lock()
		p.busy = false
		p.mu.Unlock()
	}
}

// Settled says whether no frame is under way in either direction, nor being
// received. Of what receivers do on goroutines of their own it knows nothing.
func (p *PipePort) Settled() bool {
	before, here := p.resting()
	_, there := p.peer.resting()
	after, still := p.resting()
	return here && there && still && before == after // nothing has come and gone meanwhile
}

func (p *PipePort) resting() (batches uint64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.batches, len(p.queue) == 0 && !p.busy
}

// Dropped counts the frames to this port that were lost, for whatever reason.
func (p *PipePort) Dropped() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dropped
}

// Close ends the port; what is under way is lost.
func (p *PipePort) Close() error {
	p.Attach(nil)
	return nil
}
