// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"toebox/vdev/abi"
)

// Limits of the driver.
const (
	defaultMemory    = 64 << 20
	controlMemory    = 2 << 20
	defaultSendLimit = 512 << 10
	defaultBacklog   = 1024
	minMemory        = 2 << 20
	defaultZeroCopy  = 16 << 10
	startTimeout     = 5 * time.Second
	closeTimeout     = 2 * time.Second
	defaultWatch     = time.Second
	startAttempts    = 5
	// eventMask: firmware started, link, queue error, stopped (SPEC.md §9.3).
	eventMask = abi.EventFirmware | abi.EventLink | abi.EventQueueError | abi.EventStopped
)

// Options configure an adapter; the zero value is usable.
type Options struct {
	Queues          int   // queue pairs; 0: 1
	InLog2, OutLog2 uint8 // log2 of the slots of each; 0: 8 and 9
	// Memory bounds the DMA memory for payload, in bytes, half of it for each
	// direction; it is taken as it is needed. It bounds connections as well:
	// one per 16 KiB. At least 2 MiB; 0: 64 MiB.
	Memory int
	Mode   Mode
	Spin   time.Duration // of ModeHybrid; 0: 500 us
	// SendLimit bounds the bytes of one connection that wait to be
	// acknowledged in host memory; 0: 512 KiB.
	SendLimit int
	Backlog   int // connections of a listener that wait for Accept; 0: 1024
	// Watch is how often the driver looks whether the adapter still is the one
	// it knows and whether an interrupt was lost; 0: 1 s, negative: never.
	Watch time.Duration
	// CarryOver has TCP connections go on after an orderly stop of the adapter:
	// see the package's documentation. It takes 2 MiB of memory more per queue.
	CarryOver bool
	// NoReadAhead has connections begin as after SetReadAhead(false).
	NoReadAhead bool
	// Debug turns a mode on, and is told of each mistake, that finds buffers
	// posted twice, memory written while the adapter has it, and segments used
	// or released after their release, and names the call that gave the memory
	// away: each is an [OwnershipError]. It must not call into this package.
	Debug func(error)
	// ZeroCopy is the length from which Read and Write use registered memory as
	// it is; 0: 16 KiB, negative: never.
	ZeroCopy int
	// Align is what the DMA address of such memory must be a multiple of for that,
	// in bytes; 0: any address does.
	Align int
}

func (o *Options) setDefaults() {
	if o.Queues <= 0 {
		o.Queues = 1
	}
	if o.Memory <= 0 {
		o.Memory = defaultMemory
	}
	o.Memory = max(o.Memory, minMemory)
	if o.SendLimit <= 0 {
		o.SendLimit = defaultSendLimit
	}
	if o.Backlog <= 0 {
		o.Backlog = defaultBacklog
	}
	if o.Spin <= 0 {
		o.Spin = defaultSpin
	}
	if o.ZeroCopy == 0 {
		o.ZeroCopy = defaultZeroCopy
	}
	if o.Watch == 0 {
		o.Watch = defaultWatch
	}
}

// Adapter is an adapter in operation. It owns its bus.
type Adapter struct {
	bus  Bus
	opts Options
	rx   *arena
	tx   *arena
	ctl  *arena

	lanes   []*lane
	nextLn  atomic.Uint32
	workers sync.WaitGroup
	watcher sync.WaitGroup
	stopped atomic.Bool // no more work: goroutines end
	stop    chan struct{}

	// life is held by what starts or ends the adapter.
	life       sync.Mutex
	generation uint32
	down       bool // the last restart failed: the watch tries again

	defaults atomic.Pointer[settings] // policies of connections to come
	table    bufferTable

	groups  atomic.Uint32             // ids given to groups
	regMu   sync.Mutex                // held to change regions
	regions atomic.Pointer[[]*Memory] // by address

	group   atomic.Pointer[Group]
	standby atomic.Bool // another of the group works for it

	mu        sync.RWMutex
	conns     map[uint64]endpoint
	carried   map[*Conn]struct{}       // connections between two adapters
	packets   map[*PacketConn]struct{} // to be opened again
	dialing   int                      // connections asked for and not there yet
	listeners map[uint64]*Listener
	bound     map[*Listener]struct{} // all that are open, whatever their ids
	pools     []*Pool
	receivers map[*ReceiveGroup]struct{}
	up        chan struct{} // closed while the adapter is not being restarted
	closing   bool
	idle      chan struct{}  // closed when closing and no connection is left
	address   [2]abi.Address // its own, by family
	aliases   []abi.Address  // taken over from others
	routes    []driverRoute
	stripped  bool // its own addresses are another's
	features  uint32
	bad       badResponses
	host      hostCounters
	closeOnce sync.Once
	closeErr  error
}

// Open starts the driver on the adapter behind bus. The bus is the adapter's
// from now on; when Open fails the caller closes it.
func Open(ctx context.Context, bus Bus, opts Options) (*Adapter, error) {
	opts.setDefaults()
	if opts.Queues > abi.MaxQueues {
		return nil, fmt.Errorf("guestdriver: %d queues: the adapter has %d", opts.Queues, abi.MaxQueues)
	}
	half := opts.Memory / 2
	a := &Adapter{
		bus: bus, opts: opts, up: make(chan struct{}), stop: make(chan struct{}), idle: make(chan struct{}),
		rx:    newArena(bus, half, half/4),
		tx:    newArena(bus, half, half/4),
		ctl:   newArena(bus, controlMemory, 0),
		conns: map[uint64]endpoint{}, carried: map[*Conn]struct{}{}, packets: map[*PacketConn]struct{}{}, listeners: map[uint64]*Listener{}, bound: map[*Listener]struct{}{},
		receivers: map[*ReceiveGroup]struct{}{},
	}
	for i := range opts.Queues {
		ln := &lane{a: a, index: i, vector: i + 1, err: ErrReset}
		ln.mode.Store(uint32(opts.Mode))
		ln.spin.Store(int64(opts.Spin))
		ln.at.spin, ln.at.left = opts.Spin, make(chan struct{}, 1)
		a.lanes = append(a.lanes, ln)
	}
	if err := a.identify(); err != nil {
		return nil, fmt.Errorf("guestdriver: %s: %w", bus.Name(), err)
	}
	if opts.CarryOver {
		if err := a.makeReports(); err != nil {
			return nil, fmt.Errorf("guestdriver: %s: %w", bus.Name(), err)
		}
	}
	if err := bus.EnableVectors(1 + opts.Queues); err != nil {
		return nil, fmt.Errorf("guestdriver: %s: enable vectors: %w", bus.Name(), err)
	}
	a.life.Lock()
	err := a.startLocked(ctx)
	a.life.Unlock()
	if err != nil {
		a.bus.Write32(abi.BARRegisters, abi.RegControl, abi.ControlReset)
		return nil, fmt.Errorf("guestdriver: %s: %w", bus.Name(), err)
	}
	for _, ln := range a.lanes {
		a.workers.Go(ln.run)
	}
	a.workers.Go(a.events)
	if opts.Watch > 0 {
		a.watcher.Go(a.watch)
	}
	if err := a.learn(ctx); err != nil {
		a.Close() // the goroutines wait in the bus
		return nil, fmt.Errorf("guestdriver: %s: %w", bus.Name(), err)
	}
	return a, nil
}

// identify checks that this is an adapter this driver knows, and turns it on.
func (a *Adapter) identify() error {
	id, err := a.bus.ReadConfig(0, 4)
	if err != nil {
		return fmt.Errorf("read config space: %w", err)
	}
	if id != abi.DeviceID<<16|abi.VendorID {
		return fmt.Errorf("PCI function %04x:%04x is not an adapter", id&0xffff, id>>16)
	}
	// Command: memory space and bus master.
	cmd, err := a.bus.ReadConfig(4, 2)
	if err != nil {
		return fmt.Errorf("read command register: %w", err)
	}
	if cmd&6 != 6 {
		if err := a.bus.WriteConfig(4, 2, cmd|6); err != nil {
			return fmt.Errorf("write command register: %w", err)
		}
	}
	if v := a.read(abi.RegID); v != abi.IDValue {
		return fmt.Errorf("ID register is %#08x", v)
	}
	if v := a.read(abi.RegVersion); v>>16 != abi.VersionValue>>16 {
		return fmt.Errorf("programming interface %d.%d, not %d", v>>16, v&0xffff, abi.VersionValue>>16)
	}
	limits := a.read(abi.RegLimits)
	if n := int(limits & 0xff); n < a.opts.Queues {
		return fmt.Errorf("adapter has %d queues, not %d", n, a.opts.Queues)
	}
	if n := int(limits >> 8 & 0xff); n < 1+a.opts.Queues {
		return fmt.Errorf("adapter has %d vectors, not %d", n, 1+a.opts.Queues)
	}
	a.features = a.read(abi.RegFeatures)
	return nil
}

func (a *Adapter) read(reg uint32) uint32     { return a.bus.Read32(abi.BARRegisters, reg) }
func (a *Adapter) write(reg uint32, v uint32) { a.bus.Write32(abi.BARRegisters, reg, v) }

// startLocked brings the adapter from any state to running queues (SPEC.md
// §11), and starts over when its firmware changes meanwhile.
func (a *Adapter) startLocked(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var err error
	for range startAttempts {
		gen := a.read(abi.RegGeneration)
		if err = a.bringUp(ctx); err == nil && a.read(abi.RegGeneration) == gen {
			a.generation = gen
			a.setUp(true)
			return nil
		}
		if ctx.Err() != nil || a.stopped.Load() {
			break
		}
		a.endAll(ErrReset)
		if err == nil {
			err = fmt.Errorf("firmware changes while it is started: %w", ErrReset)
		}
	}
	return err
}

func (a *Adapter) bringUp(ctx context.Context) error {
	ready := func() bool { return a.read(abi.RegStatus)&(abi.StatusReady|abi.StatusFailed) == abi.StatusReady }
	if err := pollUntil(ctx, ready); err != nil {
		return fmt.Errorf("wait until ready (status %#x): %w", a.read(abi.RegStatus), err)
	}
	if a.read(abi.RegStatus)&(abi.StatusRunning|abi.StatusStopped) != 0 {
		// Somebody's queues may still be there.
		a.write(abi.RegControl, abi.ControlReset)
		if err := pollUntil(ctx, ready); err != nil {
			return fmt.Errorf("reset (status %#x): %w", a.read(abi.RegStatus), err)
		}
	}
	a.write(abi.RegEvents, ^uint32(0))
	a.write(abi.RegControl, abi.ControlRun)
	if err := pollUntil(ctx, func() bool { return a.read(abi.RegStatus)&abi.StatusRunning != 0 }); err != nil {
		return fmt.Errorf("run (status %#x): %w", a.read(abi.RegStatus), err)
	}
	for _, ln := range a.lanes {
		q, err := NewQueue(a.bus, ln.index, QueueConfig{
			InLog2: a.opts.InLog2, OutLog2: a.opts.OutLog2, Vector: ln.vector,
			Mode: Mode(ln.mode.Load()), Spin: time.Duration(ln.spin.Load()),
		})
		if err != nil {
			return err
		}
		ln.disp.Lock()
		old := ln.queue
		ln.install(q)
		ln.disp.Unlock()
		if old != nil {
			old.freeTables()
		}
		if err := ln.postReports(); err != nil {
			return err
		}
		a.postPools(ln)
		a.postGroups(ln)
	}
	a.write(abi.RegEventMask, eventMask)
	return nil
}

// learn gets what the driver wants to know of a running adapter.
func (a *Adapter) learn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, attr := range [...]abi.Attribute{abi.AttrAddress4, abi.AttrAddress6, abi.AttrAliases, abi.AttrRoutes} {
		v, err := a.Attribute(ctx, 0, attr)
		var s abi.Status
		switch {
		case errors.As(err, &s): // no such address
		case err != nil:
			return fmt.Errorf("read attributes: %w", err)
		default:
			a.noteAddress(attr, v)
		}
	}
	return nil
}

// noteAddress remembers addresses or routes of the adapter, for LocalAddr and
// for its group.
func (a *Adapter) noteAddress(attr abi.Attribute, v []byte) {
	var list []abi.Address
	for ; len(v) > 0; v = v[abi.AddressSize:] {
		if len(v) < abi.AddressSize {
			return
		}
		ad, ok := abi.ParseAddress(v[:abi.AddressSize])
		if !ok {
			return
		}
		list = append(list, ad)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case attr == abi.AttrAliases:
		a.aliases = list
	case attr == abi.AttrRoutes:
		a.routes = nil
		for ; len(list) >= 2; list = list[2:] {
			a.routes = append(a.routes, driverRoute{list[0], list[1]})
		}
	case len(list) != 1:
	case attr == abi.AttrAddress4:
		a.address[0] = list[0]
	default:
		a.address[1] = list[0]
	}
}

// localFor is the adapter's address of a family.
func (a *Adapter) localFor(v6 bool) netip.Addr {
	a.mu.RLock()
	defer a.mu.RUnlock()
	i := 0
	if v6 {
		i = 1
	}
	return a.address[i].Addr
}

// lane returns the lane for the next connection or listener.
func (a *Adapter) lane() *lane {
	return a.lanes[int(a.nextLn.Add(1)-1)%len(a.lanes)]
}

func (a *Adapter) conn(id uint64) endpoint {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.conns[id]
}

func (a *Adapter) listener(id uint64) *Listener {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.listeners[id]
}

// enter adds a connection; false when its id is impossible or there are too
// many.
func (a *Adapter) enter(c endpoint) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := c.connID()
	if _, taken := a.conns[id]; taken || id == 0 || a.closing || len(a.conns)+len(a.carried) >= a.maxConns() {
		return false
	}
	a.conns[id] = c
	return true
}

// maxConns is how many connections there may be: in each direction one may
// hold a piece of the reserve, and in the send direction a second one that a
// ReadFrom is still filling.
func (a *Adapter) maxConns() int { return a.tx.reservePieces() / 2 }

// forget removes a connection whose id is gone.
func (a *Adapter) forget(id uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.conns, id)
	a.signalIdleLocked()
}

func (a *Adapter) signalIdleLocked() {
	if a.closing && len(a.conns)+len(a.carried) == 0 {
		select {
		case <-a.idle:
		default:
			close(a.idle)
		}
	}
}

// SetMode changes at run time how the driver learns of responses (IF11).
func (a *Adapter) SetMode(m Mode, spin time.Duration) {
	if spin <= 0 {
		spin = a.opts.Spin
	}
	for _, ln := range a.lanes {
		ln.spin.Store(int64(spin))
		ln.at.setSpin(spin)
		ln.mode.Store(uint32(m))
		// The dispatcher may sleep in the old mode: wake it.
		a.write(abi.RegRaise, uint32(ln.vector))
	}
}

// Bus returns the adapter's bus.
func (a *Adapter) Bus() Bus { return a.bus }

// Close ends listeners and connections, lets data that was written go out for
// a bounded time, stops the adapter and closes the bus.
func (a *Adapter) Close() error {
	a.closeOnce.Do(func() { a.closeErr = a.shutdown() })
	return a.closeErr
}

func (a *Adapter) shutdown() error {
	a.mu.Lock()
	a.closing = true
	conns := make([]endpoint, 0, len(a.conns))
	for _, c := range a.conns {
		conns = append(conns, c)
	}
	for c := range a.carried {
		conns = append(conns, c)
	}
	listeners := make([]*Listener, 0, len(a.bound))
	for l := range a.bound {
		listeners = append(listeners, l)
	}
	a.signalIdleLocked()
	a.mu.Unlock()
	// All are shut before the adapter hears of any: the peer of one may be another.
	open := conns[:0]
	for _, c := range conns {
		if c.shut() {
			open = append(open, c)
		}
	}
	for _, l := range listeners {
		l.Close()
	}
	for _, c := range open {
		c.terminate()
	}
	t := time.NewTimer(closeTimeout)
	defer t.Stop()
	select {
	case <-a.idle:
	case <-t.C:
	}
	a.life.Lock()
	a.stopped.Store(true)
	close(a.stop)
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if a.read(abi.RegGeneration) == a.generation && a.read(abi.RegStatus)&abi.StatusRunning != 0 {
		a.write(abi.RegControl, abi.ControlStop)
		pollUntil(ctx, func() bool { return a.read(abi.RegStatus)&(abi.StatusStopped|abi.StatusRunning) != abi.StatusRunning })
		a.write(abi.RegControl, abi.ControlReset)
		pollUntil(ctx, func() bool { return a.read(abi.RegStatus)&abi.StatusReady != 0 })
	}
	// No DMA into memory that is about to be unmapped.
	if cmd, err := a.bus.ReadConfig(4, 2); err == nil {
		a.bus.WriteConfig(4, 2, cmd&^4)
	}
	a.life.Unlock()
	a.endAll(errClosed)
	a.loseAll(errClosed)
	a.endGroups()
	// Nobody looks at memory that is about to be unmapped.
	a.watcher.Wait()
	for _, ln := range a.lanes {
		ln.settle()
		ln.at.abandon()
	}
	err := a.bus.Close()
	a.workers.Wait()
	return err
}
