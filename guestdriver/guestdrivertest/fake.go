// SPDX-License-Identifier: Apache-2.0

package guestdrivertest

import (
	"errors"
	"net"
	"sync"

	"toebox/vdev/abi"
)

// Ports of the fake's network; on others there are the driver's own listeners.
const (
	EchoPort = 7  // sends back what it gets
	HangPort = 99 // never answers a connect
)

// Fake is a fake adapter and the bus that leads to it.
type Fake struct {
	mu        sync.Mutex
	closed    bool
	stop      chan struct{}
	done      chan struct{}
	kick      chan struct{} // one token: look at the queues
	vectors   []chan struct{}
	enabled   int
	config    [64]byte
	regs      map[uint32]uint32
	mem       []region
	nextIOVA  uint64
	queues    [abi.MaxQueues]*queue
	conns     map[uint64]*conn
	listeners map[uint64]*listener
	scalars   map[abi.Attribute]uint64
	table     []byte // BUFFER_TABLE
	nextID    uint64
	nextPort  uint16
	intercept func(q int, f abi.Fields) bool
	doorbells int
	muted     bool // signals nothing
	refusing  bool // creates no queue
}

type region struct {
	iova uint64
	b    []byte
}

// New returns a fake adapter in the state after power-on.
func New() *Fake {
	f := &Fake{
		stop: make(chan struct{}), done: make(chan struct{}), kick: make(chan struct{}, 1),
		nextIOVA: 0x1_0000_0000, nextPort: 40000,
	}
	for range abi.NumVectors {
		f.vectors = append(f.vectors, make(chan struct{}, 1))
	}
	f.config[0], f.config[1], f.config[2], f.config[3] = 0x34, 0x12, 0x22, 0x74
	f.regs = map[uint32]uint32{abi.RegGeneration: 0}
	f.restartLocked()
	go f.run()
	return f
}

// restartLocked puts everything to its reset value under a new generation.
func (f *Fake) restartLocked() {
	f.regs = map[uint32]uint32{
		abi.RegID: 0x424f4554, abi.RegVersion: 0x00010000, abi.RegFeatures: 0xf, abi.RegLimits: 0x10042120,
		abi.RegStatus: abi.StatusReady, abi.RegGeneration: f.regs[abi.RegGeneration] + 1, abi.RegEvents: 1,
	}
	f.queues = [abi.MaxQueues]*queue{}
	f.conns, f.listeners = map[uint64]*conn{}, map[uint64]*listener{}
	f.scalars = map[abi.Attribute]uint64{}
	f.table = make([]byte, abi.BufferTableSize)
	f.nextID = 0
}

// Restart plays the death of the firmware and its replacement: all state is
// gone, nothing more is written to old tables.
func (f *Fake) Restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restartLocked()
	f.signalLocked(0)
}

// Kill makes the adapter vanish: registers read all ones.
func (f *Fake) Kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restartLocked()
	f.regs = nil
	f.signalLocked(0)
}

// Intercept calls fn with each request before the fake acts on it; if it
// returns true the fake does nothing. fn must not block.
func (f *Fake) Intercept(fn func(q int, req abi.Fields) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.intercept = fn
}

// Inject publishes a response as it is on queue q.
func (f *Fake) Inject(q int, resp ...abi.Fields) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if qu := f.queues[q]; qu != nil {
		qu.out = append(qu.out, resp...)
	}
	f.kickLocked()
}

// Asked returns the word by which the driver says which response of a queue it
// wants an interrupt for (SPEC.md §4.4).
func (f *Fake) Asked(q int) uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.queues[q] == nil {
		return 0
	}
	return abi.LoadWord(f.queues[q].event[abi.EventOutPublished:])
}

// Mute makes the fake lose every interrupt, or no more.
func (f *Fake) Mute(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.muted = on
}

// Refuse makes the fake refuse to create queues, or no more.
func (f *Fake) Refuse(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusing = on
}

// Pause stops the taking of requests on a queue, or lets it go on.
func (f *Fake) Pause(q int, on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if qu := f.queues[q]; qu != nil {
		qu.paused = on
	}
	f.kickLocked()
}

// Doorbells returns how many doorbells were rung.
func (f *Fake) Doorbells() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.doorbells
}

// Memory copies n bytes of DMA memory.
func (f *Fake) Memory(iova uint64, n int) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]byte(nil), f.bytesLocked(iova, n)...)
}

// Peek reads DMA memory, under the rule of Poke.
func (f *Fake) Peek(iova uint64, p []byte) { copy(p, f.bytesLocked(iova, len(p))) }

// Poke writes DMA memory. It may be called by what Intercept calls, and only
// by that.
func (f *Fake) Poke(iova uint64, p []byte) { copy(f.bytesLocked(iova, len(p)), p) }

func (f *Fake) bytesLocked(iova uint64, n int) []byte {
	for _, r := range f.mem {
		if off := iova - r.iova; iova >= r.iova && off <= uint64(len(r.b)) && uint64(n) <= uint64(len(r.b))-off {
			return r.b[off : off+uint64(n) : off+uint64(n)]
		}
	}
	return nil
}

func (f *Fake) kickLocked() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

func (f *Fake) signalLocked(v int) {
	if f.muted || v >= f.enabled || f.config[4]&4 == 0 {
		return
	}
	select {
	case f.vectors[v] <- struct{}{}:
	default:
	}
}

// Name implements guestdriver.Bus.
func (f *Fake) Name() string { return "fake" }

// ReadConfig implements guestdriver.Bus.
func (f *Fake) ReadConfig(offset, size int) (uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if offset < 0 || offset+size > len(f.config) {
		return 0, errors.New("fake: config offset")
	}
	var v uint32
	for i := range size {
		v |= uint32(f.config[offset+i]) << (8 * i)
	}
	return v, nil
}

// WriteConfig implements guestdriver.Bus.
func (f *Fake) WriteConfig(offset, size int, v uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if offset < 4 || offset+size > len(f.config) {
		return errors.New("fake: config offset")
	}
	for i := range size {
		f.config[offset+i] = byte(v >> (8 * i))
	}
	return nil
}

// Read32 implements guestdriver.Bus.
func (f *Fake) Read32(bar int, offset uint32) uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if bar != 0 || f.regs == nil {
		return ^uint32(0)
	}
	if q, r, ok := queueReg(offset); ok && r == abi.QRegState && f.queues[q] != nil {
		state := abi.QueueRunning
		if f.queues[q].paused {
			state = abi.QueuePaused
		}
		return uint32(state) | f.regs[offset]&0xffff0000
	}
	return f.regs[offset]
}

func queueReg(offset uint32) (q int, r uint32, ok bool) {
	if offset < abi.RegQueueBase || offset >= abi.RegQueueBase+abi.MaxQueues*abi.RegQueueStride {
		return 0, 0, false
	}
	offset -= abi.RegQueueBase
	return int(offset / abi.RegQueueStride), offset % abi.RegQueueStride, true
}

// Write32 implements guestdriver.Bus.
func (f *Fake) Write32(bar int, offset uint32, v uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if bar != 0 || f.regs == nil {
		return
	}
	if offset >= abi.RegDoorbells && offset < abi.RegDoorbells+abi.MaxQueues*abi.DoorbellStride {
		f.doorbells++
		f.kickLocked()
		return
	}
	if q, r, ok := queueReg(offset); ok && r == abi.QRegCommand {
		f.commandLocked(q, abi.QueueCommand(v))
		return
	}
	switch offset {
	case abi.RegControl:
		if v&abi.ControlReset != 0 {
			gen := f.regs[abi.RegGeneration]
			f.restartLocked()
			f.regs[abi.RegGeneration] = gen
			f.signalLocked(0)
			return
		}
		f.regs[abi.RegStatus] = abi.StatusReady
		if v&abi.ControlStop != 0 {
			f.regs[abi.RegStatus] |= abi.StatusStopped
		} else if v&abi.ControlRun != 0 {
			f.regs[abi.RegStatus] |= abi.StatusRunning
		}
	case abi.RegEvents:
		f.regs[offset] &^= v
	case abi.RegRaise:
		f.signalLocked(int(v))
	default:
		f.regs[offset] = v
	}
}

// AllocDMA implements guestdriver.Bus.
func (f *Fake) AllocDMA(size int) (DMA, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := region{f.nextIOVA, make([]byte, size)}
	f.nextIOVA += uint64(size+8191) &^ 4095
	f.mem = append(f.mem, r)
	return DMA{Bytes: r.b, IOVA: r.iova}, nil
}

// MapDMA implements guestdriver.Mapper.
func (f *Fake) MapDMA(p []byte) (DMA, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := region{f.nextIOVA, p}
	f.nextIOVA += uint64(len(p)+8191) &^ 4095
	f.mem = append(f.mem, r)
	return DMA{Bytes: p, IOVA: r.iova}, nil
}

// UnmapDMA implements guestdriver.Mapper.
func (f *Fake) UnmapDMA(d DMA) error { return f.FreeDMA(d) }

// FreeDMA implements guestdriver.Bus.
func (f *Fake) FreeDMA(d DMA) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, r := range f.mem {
		if r.iova == d.IOVA {
			f.mem = append(f.mem[:i], f.mem[i+1:]...)
			return nil
		}
	}
	return errors.New("fake: free of memory that was not allocated")
}

// EnableVectors implements guestdriver.Bus.
func (f *Fake) EnableVectors(n int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.enabled = n
	return nil
}

// Wait implements guestdriver.Bus.
func (f *Fake) Wait(vector int) error {
	select {
	case <-f.vectors[vector]:
		return nil
	case <-f.stop:
		return net.ErrClosed
	}
}

// Reset implements guestdriver.Bus.
func (f *Fake) Reset() error {
	f.Write32(0, abi.RegControl, abi.ControlReset)
	return nil
}

// Close implements guestdriver.Bus.
func (f *Fake) Close() error {
	f.mu.Lock()
	if !f.closed {
		f.closed = true
		close(f.stop)
	}
	f.mu.Unlock()
	<-f.done
	return nil
}

// run looks at the queues whenever somebody kicked.
func (f *Fake) run() {
	defer close(f.done)
	for {
		select {
		case <-f.stop:
			return
		case <-f.kick:
		}
		f.mu.Lock()
		for more := true; more; {
			more = false
			for i, q := range f.queues {
				if q != nil && f.regs != nil && f.passLocked(i, q) {
					more = true
				}
			}
		}
		f.mu.Unlock()
	}
}

// SetConfig changes a byte of configuration space.
func (f *Fake) SetConfig(offset int, v byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.config[offset] = v
}

// SetRegister changes a register of BAR0 until the next reset.
func (f *Fake) SetRegister(offset, v uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.regs[offset] = v
}
