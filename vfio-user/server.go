// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Regions of a PCI device (VFIO_PCI_*_REGION_INDEX).
const (
	RegionBAR0   = 0
	RegionBAR1   = 1
	RegionBAR2   = 2
	RegionBAR3   = 3
	RegionBAR4   = 4
	RegionBAR5   = 5
	RegionROM    = 6
	RegionConfig = 7
	RegionVGA    = 8
	NumRegions   = 9
)

// RegionFlags say how a region can be accessed.
type RegionFlags uint32

// Flags of VFIO_USER_DEVICE_GET_REGION_INFO.
const (
	RegionRead  RegionFlags = 1 << 0
	RegionWrite RegionFlags = 1 << 1
)

// Region describes a region. The zero value is one that the device lacks.
type Region struct {
	Size  uint64
	Flags RegionFlags
	Areas []Area // what clients may map, at most 128; none may overlap

	IOEvents []IOEvent // stores that a kernel may signal, at most 128
}

// Device is what a server offers. The server calls it from one goroutine at a
// time, the connection's, with accesses that lie inside the region and that the
// region's flags allow; p belongs to the server. An errno in an error goes to
// the client; an error without one is EIO there.
type Device interface {
	// ReadRegion fills p from a region.
	ReadRegion(region int, offset uint64, p []byte) error
	// WriteRegion stores p to a region. The client may not be waiting for it.
	WriteRegion(region int, offset uint64, p []byte) error
	// Reset is VFIO_USER_DEVICE_RESET.
	Reset() error
	// Disconnected tells that the client has gone. Its DMA maps and eventfds
	// are dropped by then. The state of the device remains.
	Disconnected()
}

// Config describes the device to clients and sets the server's limits. A zero
// limit stands for its default.
type Config struct {
	Regions    [NumRegions]Region
	IRQs       [NumIRQs]IRQ
	Resettable bool // the device serves Reset

	// Spin is how long the connection polls for the next message before it
	// sleeps: waking a processor costs more than most messages. While that is
	// in vain it polls now and then only. Default 50 us, negative for never.
	Spin time.Duration
	// Logger gets what went wrong and, with VFIOUSERDEBUG=1, every message.
	Logger *slog.Logger
	// WriteMultiple offers VFIO_USER_REGION_WRITE_MULTI. QEMU before 11 takes
	// the offer for one to queue all its messages, so it is off by default.
	WriteMultiple bool

	MaxTransfer int           // bytes of data in a message, default 1 MiB, at most 64 MiB
	MaxFDs      int           // file descriptors in a message, default 16, at most 253
	MaxDMAMaps  int           // at one time, default 65535, at most 2^24
	DMATimeout  time.Duration // of a DMA message to the client, default 2 s
	SendTimeout time.Duration // for a client that does not read, default 10 s
}

const (
	defaultSpin        = 50 * time.Microsecond
	defaultServerFDs   = 16
	mostFDs            = 253 // SCM_MAX_FD
	mostTransfer       = 64 << 20
	mostDMAMaps        = 1 << 24
	defaultDMATimeout  = 2 * time.Second
	defaultSendTimeout = 10 * time.Second
	acceptRetry        = 20 * time.Millisecond
	handOver           = 5 * time.Second // from a client that has hung up to the next
)

// withDefaults returns c with the zero limits filled in, or an error.
func (c Config) withDefaults(dev Device) (Config, error) {
	for i, r := range c.Regions {
		if r.Flags&^(RegionRead|RegionWrite) != 0 {
			return c, fmt.Errorf("vfiouser: region %d: unknown flags %#x", i, uint32(r.Flags))
		}
		c.Regions[i].Areas = slices.Clone(r.Areas)
		if err := checkAreas(r); err != nil {
			return c, fmt.Errorf("vfiouser: region %d: %w", i, err)
		}
		c.Regions[i].IOEvents = slices.Clone(r.IOEvents)
		if err := checkIOEvents(r, dev); err != nil {
			return c, fmt.Errorf("vfiouser: region %d: %w", i, err)
		}
	}
	for i, q := range c.IRQs {
		if q.Count > maxVectors || i == IRQINTx && q.Count > 1 {
			return c, fmt.Errorf("vfiouser: irq index %d: %d vectors", i, q.Count)
		}
	}
	if c.MaxTransfer < 0 || c.MaxTransfer > mostTransfer || c.MaxFDs < 0 || c.MaxFDs > mostFDs ||
		c.MaxDMAMaps < 0 || c.MaxDMAMaps > mostDMAMaps || c.DMATimeout < 0 || c.SendTimeout < 0 {
		return c, errors.New("vfiouser: limit out of range")
	}
	preset(&c.Spin, defaultSpin)
	preset(&c.MaxTransfer, defaultMaxTransfer)
	preset(&c.MaxFDs, defaultServerFDs)
	preset(&c.MaxDMAMaps, defaultMaxDMAMaps)
	preset(&c.DMATimeout, defaultDMATimeout)
	preset(&c.SendTimeout, defaultSendTimeout)
	return c, nil
}

func preset[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Server offers a device over vfio-user to one client after another.
type Server struct {
	dev   Device
	cfg   Config
	log   *slog.Logger
	trace bool
	dma   *DMA
	irqs  *irqs
	stats *counters

	migration *migration

	slot   chan struct{} // holds a value while a connection is served
	ending atomic.Bool   // that connection is being taken down
}

// NewServer returns a server for dev. The server starts no goroutine before it
// serves and holds nothing that must be closed.
func NewServer(dev Device, cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults(dev)
	if err != nil {
		return nil, err
	}
	s := &Server{dev: dev, cfg: cfg, log: cfg.Logger, stats: new(counters)}
	s.trace = os.Getenv("VFIOUSERDEBUG") == "1"
	switch {
	case s.log != nil:
	case s.trace:
		s.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	default:
		s.log = slog.New(slog.DiscardHandler)
	}
	s.slot = make(chan struct{}, 1)
	s.dma = newDMA(s.stats)
	s.irqs = newIRQs(cfg.IRQs, s.stats)
	s.migration = newMigration(dev)
	if s.migration.dev != nil && !cfg.Resettable {
		return nil, errors.New("vfiouser: a device that migrates has to serve Reset")
	}
	return s, nil
}

// DMA returns the guest's memory. It is empty while no client is connected.
func (s *Server) DMA() *DMA { return s.dma }

// DeviceReset says that the device has been reset otherwise than by Reset: by a
// write to a register, or as its client went. As any reset, that takes a device
// that migrates to StateRunning and ends a transfer. The device calls it while the
// server waits in a call of it, as Device has them: no request comes between.
func (s *Server) DeviceReset() { s.migration.enter(StateRunning) }

// own returns what the server can do, before negotiation.
func (s *Server) own() limits {
	return limits{
		maxFDs: s.cfg.MaxFDs, maxTransfer: s.cfg.MaxTransfer, maxDMAMaps: s.cfg.MaxDMAMaps,
		pageSizes: pageSize, writeMultiple: s.cfg.WriteMultiple, sparseFDs: true, twin: true,
		maxBitmap: s.cfg.MaxTransfer, migrates: s.migration.dev != nil,
	}
}

// enter takes the slot. If the client before has gone but its connection is
// still being taken down, it waits for that.
func (s *Server) enter(ctx context.Context) bool {
	select {
	case s.slot <- struct{}{}:
		return true
	default:
	}
	if !s.ending.Load() {
		return false
	}
	timer := time.NewTimer(handOver)
	defer timer.Stop()
	select {
	case s.slot <- struct{}{}:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// leave gives the slot back.
func (s *Server) leave() {
	s.ending.Store(false)
	<-s.slot
}

// session is a connection that Serve has started.
type session struct {
	c    *net.UnixConn
	done chan struct{}
}

// Serve serves the clients that connect to l, one at a time, until ctx ends,
// and then returns nil once the connection has ended. While one client is
// served, others are accepted and closed at once. l stays open.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { l.SetDeadline(time.Unix(1, 0)) })
	var wg sync.WaitGroup
	defer func() {
		wg.Wait()
		if !stop() {
			l.SetDeadline(time.Time{})
		}
	}()
	var last *session
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			if !temporary(err) {
				return fmt.Errorf("vfiouser: serve: %w", err)
			}
			s.log.Warn("vfiouser: accept", "err", err)
			select {
			case <-time.After(acceptRetry):
			case <-ctx.Done():
			}
			continue
		}
		if last != nil && !last.over(ctx) {
			s.stats.refused.Add(1)
			s.log.Warn("vfiouser: a second client was turned away")
			c.Close()
			continue
		}
		last = &session{c: c, done: make(chan struct{})}
		this := last
		wg.Go(func() {
			defer close(this.done)
			if err := s.ServeConn(ctx, this.c); err != nil {
				s.log.Warn("vfiouser: connection", "err", err)
			}
		})
	}
}

// over reports whether the session has ended, and waits for that if its client
// has hung up, so that one which reconnects at once is not turned away.
func (n *session) over(ctx context.Context) bool {
	select {
	case <-n.done:
		return true
	default:
	}
	if !hungUp(n.c) {
		return false
	}
	timer := time.NewTimer(handOver)
	defer timer.Stop()
	select {
	case <-n.done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// hungUp reports whether the peer of c has closed.
func hungUp(c *net.UnixConn) bool {
	rc, err := c.SyscallConn()
	if err != nil {
		return true
	}
	gone := true
	_ = rc.Control(func(fd uintptr) {
		p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		_, err := unix.Poll(p[:], 0)
		gone = err == nil && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone
}

// temporary reports whether accepting may work again soon.
func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Stats are counts since the server was made, and the number of DMA maps.
type Stats struct {
	Connections, Refused uint64 // clients served, turned away

	Messages       uint64 // messages from clients
	Errors         uint64 // requests refused with an error reply
	NoReplyFailed  uint64 // requests that failed and wanted no reply
	StrayReplies   uint64 // replies to nothing we asked
	RegionReads    uint64
	RegionWrites   uint64 // writes, each of a write-multi counted
	PostedWrites   uint64 // those of RegionWrites that wanted no reply
	DMAMapRequests uint64
	DMAUnmaps      uint64 // requests
	DMAUnmapsVoid  uint64 // those with nothing in their range
	DMAUnmapsWide  uint64 // those with less in their range than it could hold, but something

	DMAMapped        uint64 // DMA maps there are now
	DMAMessages      uint64 // accesses by message
	DMAMessageErrors uint64
	DirtyLogsFull    uint64 // logs of dirty pages that took all of memory for dirty

	Triggers           uint64 // interrupts signalled
	TriggersUnassigned uint64 // interrupts of a vector without eventfd
	TriggersFailed     uint64

	IOEvents uint64 // times that the device was told of an event
}

type counters struct {
	connections, refused                          atomic.Uint64
	messages, errors, noReplyFailed, strayReplies atomic.Uint64
	regionReads, regionWrites, postedWrites       atomic.Uint64
	dmaMaps, dmaUnmaps                            atomic.Uint64
	dmaUnmapsVoid, dmaUnmapsWide                  atomic.Uint64
	dmaMapped, dmaMessages, dmaMessageErrors      atomic.Uint64
	dirtyLogsFull                                 atomic.Uint64
	triggers, triggersUnassigned, triggersFailed  atomic.Uint64
	ioEvents                                      atomic.Uint64
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	c := s.stats
	return Stats{
		Connections: c.connections.Load(), Refused: c.refused.Load(),
		Messages: c.messages.Load(), Errors: c.errors.Load(), NoReplyFailed: c.noReplyFailed.Load(),
		StrayReplies: c.strayReplies.Load(), RegionReads: c.regionReads.Load(), RegionWrites: c.regionWrites.Load(),
		PostedWrites: c.postedWrites.Load(), DMAMapRequests: c.dmaMaps.Load(), DMAUnmaps: c.dmaUnmaps.Load(),
		DMAUnmapsVoid: c.dmaUnmapsVoid.Load(), DMAUnmapsWide: c.dmaUnmapsWide.Load(),
		DMAMapped: c.dmaMapped.Load(), DMAMessages: c.dmaMessages.Load(), DMAMessageErrors: c.dmaMessageErrors.Load(),
		Triggers: c.triggers.Load(), TriggersUnassigned: c.triggersUnassigned.Load(), TriggersFailed: c.triggersFailed.Load(),
		DirtyLogsFull: c.dirtyLogsFull.Load(), IOEvents: c.ioEvents.Load(),
	}
}
