// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"toebox/firmware/chip"
	"toebox/firmware/engine"
	"toebox/vdev"
	"toebox/vdev/abi"
	"toebox/vdev/port"
	vfiouser "toebox/vfio-user"
)

// Config describes an adapter. The zero value is one without a network, whose
// non-volatile image is in memory, to be served over vfio-user.
type Config struct {
	// Net is the network that the adapter is plugged into.
	Net Net
	// Port is used instead when not nil, with Lease as its addressing.
	Port  engine.Port
	Lease port.Lease

	// Impair says how bad the wire to the network is at first; see
	// [Device.Impair].
	Impair port.Impairments
	// Capture gets all frames as pcapng, as they are at the adapter's end of
	// the wire. If it is an io.Closer it is closed.
	Capture io.Writer

	// Firmware makes the firmware. It is needed, and called again when a reset
	// brings a new identity, after the Close of the one before. See the package's
	// documentation.
	Firmware func(chip.Config) (vdev.Firmware, vdev.Counters)

	// DMA and IRQs are those of a bus that calls the function directly. Nil:
	// those of the vfio-user server.
	DMA  vdev.DMA
	IRQs vdev.IRQs

	// DMATimeout is that of vfiouser.Config.
	DMATimeout time.Duration

	// NVMPath is the file of the non-volatile image; empty: none.
	NVMPath string
	// Generation is how often this adapter's firmware was started, this time
	// included; 0 means 1.
	Generation uint32
	// Seed, when not 0, makes a run repeatable: it gives the factory's MAC
	// address, and the engine's sequence numbers and ports.
	Seed uint64
	// Card is the number of this adapter among those of a machine: they have
	// different MAC addresses, as the factory gives them, with the same seed.
	Card uint32
	// Clock is monotonic time; nil: the system's.
	Clock func() time.Duration
	// Spin is how long an idle queue looks at its tables before it sleeps.
	Spin time.Duration
	// Logger is told what an operator should know; nil: nobody is.
	Logger *slog.Logger
}

// hush is how long firmware that is not the first leaves connections that it does
// not know without an answer (SPEC.md §6.5).
const hush = 10 * time.Second

// Device is an adapter.
type Device struct {
	cfg      Config
	log      *slog.Logger
	function *vdev.Function
	server   *vfiouser.Server
	nat      *port.NAT        // nil without one
	wire     *port.ImpairPort // nil where there is no network
	port     engine.Port
	plug     *plug
	lease    port.Lease

	mu      sync.Mutex
	engine  engine.Engine
	retired sync.WaitGroup // engines of replaced firmware, being closed
	once    sync.Once
	err     error // of Close
}

// New makes an adapter in its power-on state.
func New(cfg Config) (*Device, error) {
	d := &Device{cfg: cfg, log: cfg.Logger}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if err := d.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("device: %w", err), d.Close())
	}
	return d, nil
}

func (d *Device) build() error {
	if err := d.connect(); err != nil {
		return err
	}
	if d.cfg.Firmware == nil {
		return errors.New("no firmware is given")
	}
	d.plug = &plug{port: d.port}
	var err error
	d.function, err = vdev.New(vdev.Config{
		Start: d.start, DMA: d.cfg.DMA, IRQs: d.cfg.IRQs, NVMPath: d.cfg.NVMPath,
		Generation: d.cfg.Generation, Link: d.linked(),
		Seed: d.cfg.Seed + uint64(d.cfg.Card), Clock: d.cfg.Clock, Logger: d.cfg.Logger,
	})
	if err != nil {
		return err
	}
	if d.cfg.DMA != nil || d.cfg.IRQs != nil {
		return nil
	}
	c := d.function.ServerConfig()
	c.Logger, c.DMATimeout = d.cfg.Logger, d.cfg.DMATimeout
	if d.server, err = vfiouser.NewServer(d.function, c); err != nil {
		return err
	}
	d.function.Connect(d.server.DMA(), d.server)
	return nil
}

// linked reports whether the port leads anywhere.
func (d *Device) linked() bool { return d.cfg.Port != nil || d.cfg.Net.Mode != ModeNone }

// connect makes the port with what is wrapped around it.
func (d *Device) connect() error {
	forwards := d.cfg.Net.Forwards
	defer func() {
		for _, f := range forwards { // those that no gateway took over
			f.close()
		}
	}()
	switch {
	case d.cfg.Port != nil:
		d.port, d.lease = d.cfg.Port, d.cfg.Lease
	case d.cfg.Net.Mode == ModeNone:
		d.port = &noPort{}
	case d.cfg.Net.Mode == ModeNAT:
		c := d.cfg.Net.NAT
		if c.Logger == nil {
			c.Logger = d.cfg.Logger
		}
		c.Restarted = c.Restarted || d.cfg.Generation > 1
		nat, err := port.NewNAT(c)
		if err != nil {
			return err
		}
		d.nat, d.port, d.lease = nat, nat, nat.Lease()
	case d.cfg.Net.Mode == ModeTap && d.cfg.Net.Tap != nil:
		d.port, d.lease = d.cfg.Net.Tap, d.cfg.Net.Lease
	default:
		return fmt.Errorf("unknown network %q", d.cfg.Net.Mode)
	}
	if d.linked() {
		wire, err := port.Impair(d.port, d.cfg.Impair)
		if err != nil {
			return err
		}
		d.wire, d.port = wire, wire
	}
	if d.cfg.Capture != nil {
		d.port = port.Capture(d.port, d.cfg.Capture, port.CaptureOptions{})
	}
	for len(forwards) > 0 {
		f := forwards[0]
		if d.nat == nil {
			return errors.New("a forward needs the network nat")
		}
		forwards = forwards[1:]
		var err error
		if f.Socket != nil {
			err = d.nat.ForwardUDP(f.Socket, f.Guest)
		} else {
			err = d.nat.Forward(f.Listener, f.Guest)
		}
		if err != nil {
			f.close()
			return err
		}
	}
	return nil
}

// start makes engine and firmware. It is called again when a reset brings a
// new identity: the function has closed the old firmware by then.
func (d *Device) start(c chip.Chip, id vdev.Identity, generation uint32) (vdev.Firmware, vdev.Counters, error) {
	cfg := engine.Config{
		Port: d.plug.insert(), MAC: net.HardwareAddr(id.MAC[:]),
		Addresses: d.lease.Prefixes, Routes: d.lease.Routes, Logger: d.cfg.Logger,
	}
	if generation > 1 {
		cfg.Hush = hush
	}
	if d.cfg.Seed != 0 {
		var key [32]byte
		binary.LittleEndian.PutUint64(key[:], d.cfg.Seed)
		binary.LittleEndian.PutUint32(key[8:], generation)
		cfg.Random = rand.NewChaCha8(key)
	}
	e, err := engine.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	d.mu.Lock()
	old := d.engine
	d.engine = e
	d.mu.Unlock()
	if old != nil {
		// It may take a while to end connections that linger; a reset does
		// not wait for that.
		d.retired.Go(func() {
			if err := old.Close(); err != nil {
				d.log.Error("engine did not close", "err", err)
			}
		})
	}
	fc := chip.Config{
		Chip: c, Engine: e, Generation: generation, Name: id.Name, Serial: id.Serial, MAC: id.MAC,
		MTU: d.port.MTU(), NoLink: !d.linked(), Domain: d.lease.Domain, Defaults: id.Defaults,
		Clock: d.cfg.Clock, Spin: d.cfg.Spin, Logger: d.cfg.Logger,
	}
	for _, p := range d.lease.Prefixes {
		a := abi.Address{Addr: p.Addr(), Prefix: uint8(p.Bits())}
		if p.Addr().Is4() {
			fc.Address4 = a
		} else {
			fc.Address6 = a
		}
	}
	for _, r := range d.lease.Routes {
		fc.Routes = append(fc.Routes, chip.Route{
			Destination: abi.Address{Addr: r.Destination.Addr(), Prefix: uint8(r.Destination.Bits())},
			Gateway:     abi.Address{Addr: r.Gateway},
		})
	}
	for _, r := range d.lease.Resolvers {
		fc.Resolvers = append(fc.Resolvers, abi.Address{Addr: r})
	}
	fw, counters := d.cfg.Firmware(fc)
	return fw, counters, nil
}

// Function is the PCI function.
func (d *Device) Function() *vdev.Function { return d.function }

// Server returns what serves the adapter over vfio-user, nil when a bus calls it
// directly.
func (d *Device) Server() *vfiouser.Server { return d.server }

// NAT is the gateway, nil where the network is another.
func (d *Device) NAT() *port.NAT { return d.nat }

// Impair changes how bad the wire to the network is, for frames to come.
func (d *Device) Impair(im port.Impairments) error {
	if d.wire == nil {
		return errors.New("device: impair: there is no network")
	}
	return d.wire.Set(im)
}

// Inject sends an Ethernet frame to the adapter, beside what its network does.
func (d *Device) Inject(frame []byte) error {
	if d.wire == nil {
		return errors.New("device: inject: there is no network")
	}
	d.wire.Inject(frame)
	return nil
}

// Wire returns how bad the wire is and what it did to frames, nil where there
// is no network.
func (d *Device) Wire() *WireStats {
	if d.wire == nil {
		return nil
	}
	w := &WireStats{Rules: d.wire.Impairments().String()}
	w.ToAdapter, w.FromAdapter = d.wire.Stats()
	return w
}

// WireStats are the rules of the wire in the form that port.ParseImpairments
// reads, and what became of frames since the start.
type WireStats struct {
	Rules       string           `json:"rules"`
	ToAdapter   port.ImpairStats `json:"to_adapter"`
	FromAdapter port.ImpairStats `json:"from_adapter"`
}

// Serve offers the adapter to vfio-user clients of l, one after another, until
// ctx ends. l stays open.
func (d *Device) Serve(ctx context.Context, l *net.UnixListener) error {
	if d.server == nil {
		return errors.New("device: serve: the adapter has memory and interrupts of its own")
	}
	return d.server.Serve(ctx, l)
}

// Stats is a snapshot of everything that counts.
type Stats struct {
	Generation uint32            `json:"generation"`
	MAC        string            `json:"mac"`
	Serial     string            `json:"serial"`
	Firmware   string            `json:"firmware"`
	Counters   map[string]uint64 `json:"counters"` // SPEC.md §13, by name
	Refused    uint64            `json:"interrupts_refused"`
	Server     *vfiouser.Stats   `json:"vfio_user,omitempty"`
	Engine     engine.Stats      `json:"engine"`
	NAT        *port.Stats       `json:"nat,omitempty"`
	Tap        *port.TapStats    `json:"tap,omitempty"`
	Wire       *WireStats        `json:"wire,omitempty"`
	Missed     uint64            `json:"capture_missed"` // frames that the capture has not
}

// Stats returns a snapshot.
func (d *Device) Stats() Stats {
	id := d.function.Identity()
	s := Stats{
		Generation: d.function.Generation(), MAC: net.HardwareAddr(id.MAC[:]).String(),
		Serial: id.Serial, Firmware: id.Name, Counters: d.function.Counters(),
		Refused: d.function.RefusedInterrupts(),
	}
	d.mu.Lock()
	s.Engine = d.engine.Stats()
	d.mu.Unlock()
	if d.server != nil {
		v := d.server.Stats()
		s.Server = &v
	}
	if d.nat != nil {
		v := d.nat.Stats()
		s.NAT = &v
	}
	if t := d.cfg.Net.Tap; t != nil {
		v := t.Stats()
		s.Tap = &v
	}
	s.Wire = d.Wire()
	if c, ok := d.port.(*port.CapturePort); ok {
		s.Missed = c.Missed()
	}
	return s
}

// Stop is an orderly stop (SPEC.md §11), before a Close or while Serve serves:
// connections that may be carried over leave the adapter. It returns when that
// is done, or ctx ends.
func (d *Device) Stop(ctx context.Context) error { return d.function.Stop(ctx) }

// Close ends the adapter: connections are reset, the capture is finished. It
// is idempotent. Serve must have returned.
func (d *Device) Close() error {
	d.once.Do(func() {
		var errs []error
		note := func(c io.Closer) { errs = append(errs, c.Close()) }
		if d.function != nil {
			note(d.function)
		}
		d.mu.Lock()
		e := d.engine
		d.mu.Unlock()
		if e != nil {
			note(e)
		}
		d.retired.Wait()
		if d.port != nil {
			note(d.port)
		}
		if c, ok := d.cfg.Capture.(io.Closer); ok {
			note(c)
		}
		d.err = errors.Join(errs...)
	})
	return d.err
}
