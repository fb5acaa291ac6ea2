// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"toebox/ci/bus/socket"
	adapterrig "toebox/ci/rig"
	"toebox/ci/rig/rigtest"
	"toebox/firmware/engine"
	"toebox/guestdriver"
	"toebox/vdev/device"
	"toebox/vdev/port"
	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/keeper"
)

const (
	asAdapter = "adapter"          // the value of asServer: be an adapter
	wireEnv   = "KEEPER_TEST_WIRE" // its network, a socket
	wireMTU   = 1500
	stopGrace = 30 * time.Second // an orderly stop does not depend on the machine's speed
)

func lease(address string) port.Lease {
	return port.Lease{Prefixes: []netip.Prefix{netip.MustParsePrefix(address)}, MTU: wireMTU}
}

// serveAdapter is the device process: as toebox-device, but on another network.
func serveAdapter() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	if err := adapter(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func adapter(ctx context.Context) error {
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	generation, err := strconv.ParseUint(os.Getenv(keeper.EnvToebox), 10, 32)
	if err != nil {
		return err
	}
	c, err := net.Dial("unix", os.Getenv(wireEnv))
	if err != nil {
		return err
	}
	wire, err := port.NewStream(c, wireMTU)
	if err != nil {
		return err
	}
	d, err := device.New(device.Config{
		Firmware: adapterrig.Firmware, Port: wire, Lease: lease("10.0.2.15/24"), Generation: uint32(generation), Seed: 1,
	})
	if err != nil {
		return err
	}
	serving, end := context.WithCancel(context.Background())
	context.AfterFunc(ctx, func() {
		defer end()
		limited, cancel := context.WithTimeout(serving, stopGrace)
		defer cancel()
		if err := d.Stop(limited); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	})
	return errors.Join(d.Serve(serving, l.(*net.UnixListener)), d.Close())
}

// outlet is a port whose other end is, one after another, who connects to its
// socket. Frames are lost while nobody is there.
type outlet struct {
	mu      sync.Mutex
	receive func([]engine.Frame)
	stream  *port.Stream // nil: nobody
	done    chan struct{}
}

func newOutlet(t *testing.T, path string) *outlet {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	o := &outlet{done: make(chan struct{})}
	go func() {
		defer close(o.done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if s, err := port.NewStream(c, wireMTU); err == nil {
				o.plug(s)
			}
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-o.done
		o.plug(nil)
	})
	return o
}

// plug puts s in the place of the stream before.
func (o *outlet) plug(s *port.Stream) {
	o.mu.Lock()
	old, receive := o.stream, o.receive
	o.stream = s
	o.mu.Unlock()
	if old != nil {
		old.Attach(nil)
		old.Close()
	}
	if s != nil {
		s.Attach(receive)
	}
}

func (o *outlet) MTU() int { return wireMTU }

func (o *outlet) Attach(receive func([]engine.Frame)) {
	o.mu.Lock()
	s := o.stream
	o.receive = receive
	o.mu.Unlock()
	if s != nil {
		s.Attach(receive)
	}
}

func (o *outlet) Transmit(frames []engine.Frame) int {
	o.mu.Lock()
	s := o.stream
	o.mu.Unlock()
	if s == nil {
		return len(frames)
	}
	return s.Transmit(frames)
}

func (o *outlet) Close() error { return nil }

// echo is the peer: a second adapter, in this process, that sends back what
// comes.
func echo(t *testing.T, p engine.Port) {
	t.Helper()
	_, bus := rigtest.Device(t, device.Config{Port: p, Lease: lease("10.0.2.2/24"), Seed: 2})
	l, err := rigtest.Driver(t, bus, guestdriver.Options{}).Listen("tcp4", ":7")
	if err != nil {
		t.Fatal(err)
	}
	go rigtest.Echo(l)
}

// folder is one with a path short enough for a socket.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keeper")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestCarryOver: an adapter on a stream, of a process that is replaced.
func TestCarryOver(t *testing.T) {
	dir := folder(t)
	wire := filepath.Join(dir, "wire")
	echo(t, newOutlet(t, wire))
	carryOver(t, dir, "10.0.2.2:7", adapterOn(t, wire))
}

// adapterOn is the command of serveAdapter, on the network of an outlet.
func adapterOn(t *testing.T, wire string) func(keeper.Launch) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return func(l keeper.Launch) *exec.Cmd {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), asServer+"="+asAdapter, wireEnv+"="+wire)
		cmd.ExtraFiles = []*os.File{l.Listener}
		return cmd
	}
}

// total is how much a connection carries each way, bytes.
const total = 6 << 20

// kept opens the adapter of processes that a keeper starts.
func kept(t *testing.T, dir string, c keeper.Config) (*keeper.Keeper, *guestdriver.Adapter) {
	t.Helper()
	c.StopGrace = stopGrace
	k, err := keeper.New(c)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "device")
	front, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Serve(ctx, front) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		front.Close()
	})
	bus, err := socket.Dial(t.Context(), path, vfiouser.ClientConfig{Timeout: limit})
	if err != nil {
		t.Fatal(err)
	}
	return k, rigtest.Driver(t, bus, guestdriver.Options{CarryOver: true})
}

// carryOver replaces the process of an adapter twice in the middle of a transfer both
// ways. Neither the driver's user nor the peer, which stays, notices anything but a
// pause.
func carryOver(t *testing.T, dir, peer string, command func(keeper.Launch) *exec.Cmd) {
	t.Helper()
	const parts = 3
	k, a := kept(t, dir, keeper.Config{Command: command})
	c, err := a.Dial("tcp", peer)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))

	rigtest.Transfers(t, []net.Conn{c}, total, parts, func(part int) {
		if err := k.Replace(t.Context()); err != nil {
			t.Fatal(err)
		}
		rigtest.Until(t, "the connection to go on", func() bool {
			s := a.Stats()
			return s.CarriedOver+s.CarryFailed > uint64(part)
		}, func() string { return fmt.Sprintf("%+v", a.Stats()) })
	})
	if s := a.Stats(); s.CarriedOver != parts-1 || s.CarryFailed != 0 || s.Resets != parts-1 {
		t.Errorf("%d carried over, %d failed, %d restarts", s.CarriedOver, s.CarryFailed, s.Resets)
	}
	if s := k.Stats(); s.Starts != parts {
		t.Errorf("%d processes", s.Starts)
	}
}
