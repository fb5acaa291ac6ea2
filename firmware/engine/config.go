// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Config says what [New] builds. Port and MAC are needed, the rest has
// defaults.
type Config struct {
	// Port is the Ethernet side. The engine attaches to it and detaches at
	// Close, but does not close it.
	Port Port
	// MAC is the adapter's Ethernet address: six bytes, unicast.
	MAC net.HardwareAddr
	// MTU in bytes, at most the port's; 0 means the port's.
	MTU int
	// Addresses and Routes to start with: see [Engine.SetAddresses] and
	// [Engine.SetRoutes].
	Addresses []netip.Prefix
	Routes    []Route
	// TimeWait is how long a connection that was closed first on this side
	// is remembered; 0 means 2 s. RFC 9293 asks for minutes, which at 10,000
	// connections a second would be gigabytes.
	TimeWait time.Duration
	// Hush is how long after New segments of connections that the engine does
	// not know are left without an answer, which would be a reset: they may come
	// from another engine (see [Carrier]).
	Hush time.Duration
	// RACK turns on time-based loss detection (RFC 8985). It recovers faster
	// on a wire that loses packets, and resends what was not lost where the
	// round trip is far below its clock's millisecond.
	RACK bool
	// Congestion names the congestion control: "" or "reno". CUBIC is
	// refused: in the protocol stack used here its window can reach 0 with no
	// timer armed, which stops a connection for ever.
	Congestion string
	// Random supplies initial sequence numbers and ports; nil means the
	// system's. A seeded source makes runs repeat.
	Random io.Reader
	// Clock drives all timers; nil means the system's.
	Clock Clock
	// Logger hears about misuse and faults; nil is silent.
	Logger *slog.Logger
}

// Limits of the engine's own.
const (
	minMTU           = 1280 // IPv6's minimum, RFC 8200 section 5
	maxMTU           = 65535
	defaultTimeWait  = 2 * time.Second
	minBuffer        = 4 << 10 // bytes
	defaultBuffer    = 1 << 20
	maxBuffer        = 16 << 20
	firstLocalPort   = 16000 // what the engine picks from
	lastLocalPort    = 65535
	maxBacklog       = 1 << 16
	maxConfiguration = 4096 // addresses or routes
)

var (
	// ErrBadOption says that an option's value is out of range.
	ErrBadOption = errors.New("engine: option value out of range")
	// ErrClosed says that the engine, or the sending direction, was closed
	// from this side.
	ErrClosed = fmt.Errorf("engine: %w", net.ErrClosed)
)

func (c *Config) check() error {
	if c.Port == nil {
		return errors.New("engine: new: no port")
	}
	if len(c.MAC) != 6 || c.MAC[0]&1 != 0 {
		return fmt.Errorf("engine: new: %q is no unicast Ethernet address", c.MAC.String())
	}
	mtu := c.Port.MTU()
	if c.MTU > mtu || c.MTU < 0 {
		return fmt.Errorf("engine: new: MTU %d is not between 0 and the port's %d", c.MTU, mtu)
	}
	if c.MTU == 0 {
		c.MTU = mtu
	}
	if c.MTU < minMTU || c.MTU > maxMTU {
		return fmt.Errorf("engine: new: MTU %d is not between %d and %d", c.MTU, minMTU, maxMTU)
	}
	if c.Congestion != "" && c.Congestion != "reno" {
		return fmt.Errorf("engine: new: congestion control %q: %w", c.Congestion, ErrNotSupported)
	}
	if c.TimeWait < 0 {
		return fmt.Errorf("engine: new: negative time wait %v", c.TimeWait)
	}
	if c.TimeWait == 0 {
		c.TimeWait = defaultTimeWait
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Clock is the time an engine lives in.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f once after d, on a goroutine of its own or within
	// the call that moves a manual clock.
	AfterFunc(d time.Duration, f func()) Timer
}

// Timer is a pending call of [Clock.AfterFunc].
type Timer interface {
	// Stop prevents the call and says whether it came in time to.
	Stop() bool
	// Reset arms a timer that was stopped or has fired.
	Reset(d time.Duration)
}

// stackClock lets gVisor live in a Clock's time.
type stackClock struct {
	clock Clock
	start time.Time
}

func newStackClock(c Clock) tcpip.Clock {
	if c == nil {
		return tcpip.NewStdClock()
	}
	return &stackClock{clock: c, start: c.Now()}
}

func (c *stackClock) Now() time.Time { return c.clock.Now() }

func (c *stackClock) NowMonotonic() tcpip.MonotonicTime {
	return tcpip.MonotonicTime{}.Add(c.clock.Now().Sub(c.start))
}

func (c *stackClock) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	return c.clock.AfterFunc(d, f)
}
