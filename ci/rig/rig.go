// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"toebox/ci/bus/inproc"
	busqtest "toebox/ci/bus/qtest"
	"toebox/ci/bus/socket"
	"toebox/ci/conformance"
	"toebox/ci/netns"
	"toebox/ci/peer"
	"toebox/firmware"
	"toebox/guestdriver"
	"toebox/images/qtest"
	"toebox/vdev"
	"toebox/vdev/device"
	"toebox/vdev/port"
	vfiouser "toebox/vfio-user"
)

// Config says how a rig is built.
type Config struct {
	// Seed makes payload, schedules and the adapter repeat.
	Seed uint64
	// Scale multiplies the bounds of waits.
	Scale float64
	// NVMPath keeps the adapter's image in a file.
	NVMPath string
	// Capture gets the frames as pcapng.
	Capture io.Writer
	Logger  *slog.Logger
	// Peer is conformance.PeerNAT, also if empty, or conformance.PeerKernel.
	Peer string
	// Kit is the package of the program that a guest has as the kit; empty:
	// toebox-conformance.
	Kit string
	// QEMU runs QEMU; for QTest.
	QEMU func(args ...string) *exec.Cmd
}

// Rig is an adapter with a bus and a peer.
type Rig struct {
	rung string
	cfg  Config
	dev  *device.Device
	host *peer.Host
	open func(ctx context.Context) (guestdriver.Bus, error)
	path string // of the device's socket, where there is one

	mu    sync.Mutex
	ports uint16
	ends  []func() error // in order of set-up
	once  sync.Once
	err   error
}

// adapterPort is the first port of the adapter that Reachable gives out.
const adapterPort = 7000

// Firmware makes the tree's firmware, for a device.Config.
func Firmware(c firmware.Config) (vdev.Firmware, vdev.Counters) {
	f := firmware.New(c)
	return f, f.Counters()
}

// connectPatience is how long a client waits for the adapter to take its
// connection: one of a thousand at once on a busy machine does for many seconds.
const connectPatience = time.Minute

// newRig makes the parts that all rungs have.
func newRig(rung string, cfg Config, dc device.Config) (*Rig, error) {
	dc.Firmware = Firmware
	dc.NVMPath, dc.Seed, dc.Capture, dc.Logger = cfg.NVMPath, cfg.Seed, cfg.Capture, cfg.Logger
	if cfg.Peer == conformance.PeerKernel {
		return newKernelRig(rung, cfg, dc)
	}
	dc.Net = device.Net{Mode: device.ModeNAT, NAT: port.NATConfig{ConnectTimeout: connectPatience}}
	dev, err := device.New(dc)
	if err != nil {
		return nil, fmt.Errorf("rig: %s: %w", rung, err)
	}
	r := &Rig{rung: rung, cfg: cfg, dev: dev, ports: adapterPort}
	r.host = r.natPeer()
	r.ends = append(r.ends, dev.Close, r.host.Close)
	return r, nil
}

// natPeer makes the peer of an adapter behind nat; over IPv6 as well if the host's
// loopback has that.
func (r *Rig) natPeer() *peer.Host {
	nat := r.dev.NAT()
	four := peer.HostConfig{Gateway: nat.Gateway(), Adapter: nat.Lease().Prefixes[0].Addr(), Forwards: r.forwards}
	if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		l.Close()
		four.IPv6 = newPeer(r.dev, peer.HostConfig{Gateway: nat.Gateway6(), Bind: netip.IPv6Loopback(), Forwards: r.forwards6})
	}
	return newPeer(r.dev, four)
}

// newPeer makes the peer on an adapter's network.
func newPeer(dev *device.Device, c peer.HostConfig) *peer.Host {
	nobody := c.Gateway.AsSlice()
	nobody[len(nobody)-1] = 99 // neither gateway, resolver nor adapter
	c.Nobody, _ = netip.AddrFromSlice(nobody)
	c.Impair = func(rules string) (conformance.Harm, error) {
		im, err := port.ParseImpairments(rules)
		if err == nil {
			err = dev.Impair(im)
		}
		return harm(dev.Wire()), err
	}
	if c.Adapter.IsValid() {
		c.Inject, c.MAC = dev.Inject, dev.Function().Identity().MAC
	}
	return peer.NewHost(c)
}

// newKernelRig is newRig on a network of the kernel's.
func newKernelRig(rung string, cfg Config, dc device.Config) (*Rig, error) {
	n, err := netns.New()
	if err != nil {
		return nil, fmt.Errorf("rig: %s: %w", rung, err)
	}
	var dev *device.Device
	network, err := n.Net()
	if err == nil {
		dc.Net, err = device.ParseNet(network)
	}
	if err == nil {
		dev, err = device.New(dc)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("rig: %s: %w", rung, err), n.Close())
	}
	r := &Rig{rung: rung, cfg: cfg, dev: dev, ports: adapterPort}
	ways := func(to netip.Addr) func(int) ([]peer.Forward, error) {
		return func(count int) (out []peer.Forward, err error) {
			for range count {
				p := r.nextPort()
				out = append(out, peer.Forward{Port: p, Host: netip.AddrPortFrom(to, p)})
			}
			return out, nil
		}
	}
	four := peer.HostConfig{Gateway: n.Gateway(), Adapter: n.Adapter(), Bind: n.Gateway(), Do: n.Do, Relay: true, Forwards: ways(n.Adapter())}
	if g := n.Gateway6(); g.IsValid() {
		four.IPv6 = newPeer(dev, peer.HostConfig{Gateway: g, Bind: g, Do: n.Do, Relay: true, Forwards: ways(n.Adapter6())})
	}
	r.host = newPeer(dev, four)
	r.ends = append(r.ends, n.Close, dev.Close, r.host.Close)
	return r, nil
}

// nextPort is a port of the adapter that nobody has.
func (r *Rig) nextPort() uint16 {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.ports
	r.ports++
	return p
}

// harm adds both directions up.
func harm(w *device.WireStats) (sum conformance.Harm) {
	for _, d := range []port.ImpairStats{w.ToAdapter, w.FromAdapter} {
		sum.Frames += d.Frames
		sum.Lost += d.Lost + d.Overflowed
		sum.Corrupted += d.Corrupted
		sum.Duplicated += d.Duplicated
		sum.Reordered += d.Reordered
		sum.Delivered += d.Delivered
	}
	return sum
}

// forwards opens ways in to n ports of the adapter, forwards6 over IPv6.
func (r *Rig) forwards(n int) ([]peer.Forward, error) {
	return r.forwardsTo(n, "127.0.0.1:0", netip.Addr{})
}

func (r *Rig) forwards6(n int) ([]peer.Forward, error) {
	return r.forwardsTo(n, "[::1]:0", r.dev.NAT().Adapter6())
}

func (r *Rig) forwardsTo(n int, address string, adapter netip.Addr) ([]peer.Forward, error) {
	var out []peer.Forward
	for range n {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, err
		}
		host, err := netip.ParseAddrPort(l.Addr().String())
		if err != nil {
			l.Close()
			return nil, err
		}
		p := r.nextPort()
		if err := r.dev.NAT().Forward(l, netip.AddrPortFrom(adapter, p)); err != nil {
			return nil, err
		}
		out = append(out, peer.Forward{Port: p, Host: host})
	}
	return out, nil
}

// Inproc builds the lowest rung.
func Inproc(cfg Config) (*Rig, error) {
	mem, irqs := inproc.NewMemory(), inproc.NewInterrupts()
	r, err := newRig(conformance.RungInproc, cfg, device.Config{DMA: mem, IRQs: irqs})
	if err != nil {
		return nil, err
	}
	r.open = func(context.Context) (guestdriver.Bus, error) { return inproc.New(r.dev.Function(), mem, irqs) }
	return r, nil
}

// Socket serves the device on a unix socket, as it is served to QEMU.
func Socket(cfg Config) (*Rig, error) {
	r, err := newRig(conformance.RungSocket, cfg, device.Config{})
	if err != nil {
		return nil, err
	}
	path, err := r.listen()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("rig: socket: %w", err), r.Close())
	}
	r.open = func(ctx context.Context) (guestdriver.Bus, error) {
		return socket.Dial(ctx, path, vfiouser.ClientConfig{Timeout: r.patience()})
	}
	return r, nil
}

// answered is how long a request of the protocol may take.
const answered = 5 * time.Second

func (r *Rig) patience() time.Duration { return time.Duration(max(r.cfg.Scale, 1) * float64(answered)) }

// listen serves the device on a socket and returns its path.
func (r *Rig) listen() (string, error) {
	// Socket names are short: the run's folder may be anywhere.
	dir, err := os.MkdirTemp("", "tbx")
	if err != nil {
		return "", err
	}
	r.ends = append(r.ends, func() error { return os.RemoveAll(dir) })
	path := filepath.Join(dir, "dev")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return "", err
	}
	r.serve(l)
	r.path = path
	return path, nil
}

const guestRAM = 256 << 20

// QTest serves the device on a socket and starts QEMU on it.
func QTest(ctx context.Context, cfg Config) (*Rig, error) {
	if cfg.QEMU == nil {
		return nil, errors.New("rig: qtest: no QEMU given")
	}
	r, err := newRig(conformance.RungQTest, cfg, device.Config{})
	if err != nil {
		return nil, err
	}
	if err := r.startQEMU(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("rig: qtest: %w", err), r.Close())
	}
	return r, nil
}

func (r *Rig) startQEMU(ctx context.Context) error {
	path, err := r.listen()
	if err != nil {
		return err
	}
	m, err := qtest.Start(ctx, qtest.Config{
		Command: r.cfg.QEMU, Dir: filepath.Dir(path), Memory: guestRAM,
		Args: []string{"-device", fmt.Sprintf(`{"driver":"vfio-user-pci","addr":"5.0","socket":{"type":"unix","path":%q}}`, path)},
	})
	if err != nil {
		return err
	}
	r.ends = append(r.ends, m.Close)
	r.open = func(context.Context) (guestdriver.Bus, error) {
		return busqtest.New(m, qtest.NewBDF(0, 5, 0), guestRAM)
	}
	return nil
}

// serve offers the device to QEMU until Close.
func (r *Rig) serve(l *net.UnixListener) {
	serving, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- r.dev.Serve(serving, l) }()
	// The server ends before the device that it serves.
	r.ends = append(r.ends, func() error {
		stop()
		err := <-served
		if errors.Is(err, context.Canceled) {
			err = nil
		}
		return errors.Join(err, l.Close())
	})
}

// Env is the environment for the kit.
func (r *Rig) Env() *conformance.Env {
	return &conformance.Env{
		Rung: r.rung, Open: r.open, Restart: r.dev.Function().Restart,
		Peer: r.host, Seed: r.cfg.Seed, Scale: r.cfg.Scale,
	}
}

// SocketPath is where the device is served, empty on the lowest rung.
func (r *Rig) SocketPath() string { return r.path }

// Device is the device under test.
func (r *Rig) Device() *device.Device { return r.dev }

// Close ends everything, the last started first. It is idempotent.
func (r *Rig) Close() error {
	r.once.Do(func() {
		var errs []error
		for i := len(r.ends) - 1; i >= 0; i-- {
			errs = append(errs, r.ends[i]())
		}
		r.err = errors.Join(errs...)
	})
	return r.err
}
