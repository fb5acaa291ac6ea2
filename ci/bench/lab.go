// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"toebox/ci/bench/task"
	"toebox/ci/netns"
	"toebox/images/control"
	"toebox/images/guest"
	"toebox/images/initramfs"
	images "toebox/images/rig"
)

const (
	agentPackage = "toebox/ci/cmd/toebox-bench"
	agentProgram = "/bin/toebox-bench"
	// slack is how much longer than its time a task may take: connections are made
	// before and ended after.
	slack = 2 * time.Minute
	// slackEach is that for each connection.
	slackEach = 20 * time.Millisecond
	// hugePage is the size of one, MiB.
	hugePage = 2
)

// room is what a guest has of memory, all in MiB.
type room struct {
	guest  int // all of it
	huge   int // kept free in huge pages
	driver int // of these, what the driver may hold
}

// ample is room for 10,000 connections of either kind, and for mapping 256 MiB at once;
// modest for everything else. A guest needs time for each page that it sets aside.
func ample() room  { return room{guest: 2048, huge: 512, driver: 192} }
func modest() room { return room{guest: 1024, huge: 128, driver: 64} }

// Addresses: the devices are on networks of their own, in which the host has 2.
const (
	adapterTap, virtioTap = "toebox0", "toebox1"
	prefixBits            = 24
)

func hostAddress(s task.Side) netip.Addr  { return address(s, 2) }
func guestAddress(s task.Side) netip.Addr { return address(s, 15) }

// address follows QEMU's user networking and the adapter's nat.
func address(s task.Side, host byte) netip.Addr {
	network := byte(2)
	if s == task.Virtio {
		network = 3
	}
	return netip.AddrFrom4([4]byte{10, 0, network, host})
}

// Lab is a VM with both devices, and the host as their peer.
type Lab struct {
	VM   *images.Instance
	Peer *Peer

	tap      bool
	toAgent  *io.PipeWriter
	lines    *task.Lines
	answers  chan answer
	complain *tail
	ended    sync.WaitGroup
}

type answer struct {
	task.Answer
	err error
}

// TaskError is a task that the guest could not do; it is ready for others.
type TaskError struct{ Text string }

func (e *TaskError) Error() string { return e.Text }

// Config says how a lab is built.
type Config struct {
	Images images.Options
	// Tap has both devices on tap devices of the calling process's network namespace,
	// which NewLab makes; otherwise virtio is on user networking.
	Tap bool
	// Ample gives the guest memory for 10,000 connections.
	Ample bool
}

func (c *Config) room() room {
	if c.Ample {
		return ample()
	}
	return modest()
}

// Options are those of the VM.
func (c *Config) Options(agent []byte) images.Options {
	o := c.Images
	o.Port = 0
	o.Load = append(o.Load, "virtio_net")
	o.Append = append(o.Append, guest.NoAdapter) // the agent brings it up
	o.Files = append(o.Files, initramfs.File{Path: agentProgram[1:], Mode: 0o755, Data: agent})
	o.MemoryMiB = c.room().guest
	backend := fmt.Sprintf("user,id=bench,net=%v/%d,host=%v", address(task.Virtio, 0), prefixBits, hostAddress(task.Virtio))
	o.Net = "nat"
	if c.Tap {
		backend = "tap,id=bench,script=no,downscript=no,ifname=" + virtioTap
		o.Net = fmt.Sprintf("tap:if=%s,ip=%v/%d,gw=%v", adapterTap, guestAddress(task.Adapter), prefixBits, hostAddress(task.Adapter))
	}
	o.Args = append(o.Args, "-name", "toebox,debug-threads=on",
		"-netdev", backend, "-device", "virtio-net-pci,netdev=bench,addr=6.0,romfile=")
	return o
}

// NewLab boots the VM and starts its agent.
func NewLab(ctx context.Context, c Config) (*Lab, error) {
	programs, err := initramfs.Programs(ctx, initramfs.Config{CacheDir: c.Images.Cache, Source: c.Images.Source, Progress: c.Images.Report}, agentPackage)
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	agent, err := os.ReadFile(filepath.Join(programs, filepath.Base(agentPackage)))
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	bind := "127.0.0.1" // which both gateways pass connections to themselves on to
	if c.Tap {
		bind = "0.0.0.0"
		for name, side := range map[string]task.Side{adapterTap: task.Adapter, virtioTap: task.Virtio} {
			if err := netns.Plug(name, netip.PrefixFrom(hostAddress(side), prefixBits)); err != nil {
				return nil, fmt.Errorf("bench: %w", err)
			}
		}
	}
	l := &Lab{tap: c.Tap, complain: &tail{}, answers: make(chan answer, 2)}
	if l.Peer, err = NewPeer(bind); err != nil {
		return nil, err
	}
	if l.VM, err = images.Up(ctx, c.Options(agent)); err != nil {
		return nil, errors.Join(fmt.Errorf("bench: %w", err), l.Close())
	}
	l.startAgent(ctx, c.room())
	for _, t := range []*task.Task{
		{Side: task.Virtio, Kind: task.SetUp, Peer: netip.PrefixFrom(guestAddress(task.Virtio), prefixBits).String()},
		{Side: task.Adapter, Kind: task.SetUp},
	} {
		if _, err := l.Run(ctx, t); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// startAgent starts the guest's half.
func (l *Lab) startAgent(ctx context.Context, r room) {
	stdin, toAgent := io.Pipe()
	fromAgent, stdout := io.Pipe()
	l.toAgent = toAgent
	l.lines = task.NewLines(fromAgent, toAgent)
	ctx = context.WithoutCancel(ctx) // it ends with its input
	l.ended.Go(func() {
		r, err := control.Run(ctx, l.VM.Control(), control.Request{Args: []string{agentProgram, fmt.Sprint(r.huge / hugePage), fmt.Sprint(r.driver)}},
			control.Streams{Stdin: stdin, Stdout: stdout, Stderr: l.complain})
		if err == nil {
			err = fmt.Errorf("bench: the agent ended with status %d%s: %s", r.Status, r.Error, l.complain)
		}
		stdout.CloseWithError(err)
		stdin.CloseWithError(err)
	})
	l.ended.Go(func() {
		for {
			var a answer
			if a.err = l.lines.Read(&a.Answer); a.err == io.EOF {
				a.err = io.ErrUnexpectedEOF
			}
			select {
			case l.answers <- a:
			case <-l.VM.Done():
				return
			}
			if a.err != nil {
				return
			}
		}
	})
}

// Run does a task; it fills in where the peer is.
func (l *Lab) Run(ctx context.Context, t *task.Task) (*Sample, error) {
	told := *t
	switch {
	case told.Kind == task.SetUp, told.Kind == task.Map:
	case told.Kind == task.Accept:
		if !l.tap {
			return nil, &TaskError{"bench: on user networking nobody can call the guest"}
		}
		calling, hangUp := context.WithCancel(ctx)
		var called sync.WaitGroup
		called.Go(func() { Call(calling, net.JoinHostPort(guestAddress(t.Side).String(), strconv.Itoa(task.AcceptPort))) })
		defer called.Wait()
		defer hangUp()
	default:
		told.Peer = netip.AddrPortFrom(hostAddress(t.Side), uint16(l.Peer.Port(t.Kind))).String()
	}
	if err := told.Check(); err != nil {
		return nil, err
	}
	limit := told.Warm + told.For + slack + time.Duration(told.Conns)*slackEach
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("bench: %s over %s was not done after %v", t.Kind, t.Side, limit))
	defer cancel()
	if err := l.lines.Write(told); err != nil {
		return nil, err
	}
	var before, last spent // when it began, and when the guest spoke last before the result
	began := false
	for {
		var a answer
		select {
		case a = <-l.answers:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		now, err := l.spent()
		switch {
		case a.err != nil:
			return nil, a.err
		case a.Error != "":
			return nil, &TaskError{a.Error}
		case err != nil:
			return nil, err
		case a.Result != nil:
			s := &Sample{Result: *a.Result}
			now.fill(&before, s)
			s.DeviceMemory = last.memory - before.memory
			return s, nil
		case !began:
			began, before, last = true, now, now
		default:
			last = now
		}
	}
}

// spent is the time that all processes took so far.
func (l *Lab) spent() (spent, error) {
	var pids []int
	device, keeper := l.VM.Processes()
	for _, pid := range []int{device, keeper} {
		if pid != 0 {
			pids = append(pids, pid)
		}
	}
	return readSpent("/proc", l.VM.VM.PID(), pids)
}

// Close ends everything.
func (l *Lab) Close() error {
	if l.toAgent != nil {
		l.toAgent.Close()
	}
	if l.VM != nil {
		l.VM.Close()
	}
	l.ended.Wait()
	return l.Peer.Close()
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(len(t.b)-tailSize, 0):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}
