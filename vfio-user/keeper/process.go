// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a running device server.
type Process interface {
	// Dial connects to the server, waiting until it listens.
	Dial(ctx context.Context) (*net.UnixConn, error)
	// Done is closed when nothing of the process is left that could touch
	// guest memory, and its output has been read.
	Done() <-chan struct{}
	// Err says how it ended. After Done.
	Err() error
	// Stop asks the process to end, waits for grace, and then ends it by
	// force. It returns after Done.
	Stop(grace time.Duration)
	// PID is 0 if there is none of its own.
	PID() int
	// Trace returns the end of what it wrote to standard error.
	Trace() []byte
}

// Launch is what a command needs to know to start a device server. The server
// listens on Socket, or serves Listener, which does already; a command that
// uses Listener has it among its ExtraFiles.
type Launch struct {
	Generation uint32 // how often the server was started, this time included
	Socket     string // a path where nothing is yet; not for a server that gets Listener
	Listener   *os.File
}

// Variables in the environment of a device server.
const (
	EnvSocket     = "VFIO_USER_SOCKET"  // Launch.Socket
	EnvGeneration = "KEEPER_GENERATION" // Launch.Generation
	// EnvToebox has the value of EnvGeneration, under the name by which this
	// project's adapter knows it.
	EnvToebox = "TOEBOX_GENERATION"
)

const (
	traceSize  = 64 << 10
	dialRetry  = 2 * time.Millisecond
	dialMost   = 20 * time.Millisecond
	outputWait = time.Second     // for output, after the end of a process
	groupWait  = 5 * time.Second // for the rest of its group
)

// child is a process started from a command.
type child struct {
	pid    int
	dir    *folder  // removed at the end
	socket string   // path at which the server will listen; "": it has a socket already
	place  *os.File // of that socket
	done   chan struct{}
	stderr *tail
	err    error // valid once done is closed

	mu     sync.Mutex // orders signals with the end: a reaped pid may be somebody else's
	reaped bool
}

// startChild starts what command returns.
func startChild(command func(Launch) *exec.Cmd, generation uint32, log io.Writer) (_ *child, err error) {
	dir, err := newFolder()
	if err != nil {
		return nil, err
	}
	p := &child{dir: dir, done: make(chan struct{}), stderr: &tail{w: log}}
	defer func() {
		if err != nil {
			p.clean()
		}
	}()
	f, place, err := dir.listen()
	if err != nil {
		return nil, err
	}
	p.place = place
	defer f.Close()
	p.socket = filepath.Join(dir.path, "s")
	cmd := command(Launch{Generation: generation, Socket: p.socket, Listener: f})
	if cmd == nil {
		return nil, errors.New("keeper: no command")
	}
	if slices.Contains(cmd.ExtraFiles, f) {
		p.socket = ""
		dir.remove() // nothing to clean up, then, even if we are killed
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	n := strconv.FormatUint(uint64(generation), 10)
	cmd.Env = append(cmd.Env, EnvSocket+"="+filepath.Join(dir.path, "s"), EnvGeneration+"="+n, EnvToebox+"="+n)
	if cmd.Stderr == nil {
		cmd.Stderr = p.stderr
	}
	cmd.WaitDelay = outputWait
	return p, p.run(cmd)
}

// run starts the command and waits for it in a thread of its own: the kernel
// kills a child when the thread that started it ends (PR_SET_PDEATHSIG).
func (p *child) run(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- fmt.Errorf("keeper: start: %w", err)
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		waitExited(p.pid)
		// Whoever it has started itself may hold guest memory too. While the
		// zombie is there nobody else can have the number of the group.
		p.endGroup()
		p.mu.Lock()
		p.reaped = true
		p.mu.Unlock()
		p.err = cmd.Wait()
		if errors.Is(p.err, exec.ErrWaitDelay) {
			p.err = nil
		}
		p.clean()
		close(p.done)
	}()
	return <-started
}

// clean removes what was made for the process.
func (p *child) clean() {
	p.dir.remove()
	if p.place != nil {
		p.place.Close()
	}
}

// waitExited waits until pid has ended, without reaping it.
func waitExited(pid int) {
	for {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return
		}
	}
}

// endGroup kills what is left of the process's group and waits for it.
func (p *child) endGroup() {
	for deadline := time.Now().Add(groupWait); ; {
		syscall.Kill(-p.pid, syscall.SIGKILL)
		if !groupAlive(p.pid) || time.Now().After(deadline) {
			return
		}
		<-time.After(dialRetry)
	}
}

// groupAlive reports whether a process of the group runs.
func groupAlive(pgid int) bool {
	dir, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, e := range dir {
		if e.Name()[0] < '0' || e.Name()[0] > '9' {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		// "pid (name) state ppid pgrp ...", and the name can be anything.
		_, rest, _ := bytes.Cut(b[max(0, bytes.LastIndexByte(b, ')')):], []byte(" "))
		if f := strings.Fields(string(rest)); len(f) > 2 && f[2] == strconv.Itoa(pgid) && f[0] != "Z" && f[0] != "X" {
			return true
		}
	}
	return false
}

// Dial implements Process.
func (p *child) Dial(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	if p.socket == "" {
		// The descriptor must stay what it is until the connection is made.
		rc, err := p.place.SyscallConn()
		if err != nil {
			return nil, fmt.Errorf("keeper: %w", err)
		}
		var c net.Conn
		cerr := rc.Control(func(uintptr) { c, err = d.DialContext(ctx, "unix", p.place.Name()) })
		if err = errors.Join(err, cerr); err != nil {
			return nil, fmt.Errorf("keeper: %w", err)
		}
		return c.(*net.UnixConn), nil
	}
	for wait := dialRetry; ; wait = min(2*wait, dialMost) {
		c, err := d.DialContext(ctx, "unix", p.socket)
		if err == nil {
			return c.(*net.UnixConn), nil
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("keeper: %w", err)
		}
		select {
		case <-time.After(wait):
		case <-p.done:
			return nil, errors.New("keeper: the server ended before it listened")
		case <-ctx.Done():
			return nil, fmt.Errorf("keeper: the server does not listen: %w", context.Cause(ctx))
		}
	}
}

// Done implements Process.
func (p *child) Done() <-chan struct{} { return p.done }

// Err implements Process.
func (p *child) Err() error {
	<-p.done
	return p.err
}

// PID implements Process. It is also the number of its group.
func (p *child) PID() int { return p.pid }

// Trace implements Process.
func (p *child) Trace() []byte { return p.stderr.bytes() }

func (p *child) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		syscall.Kill(-p.pid, sig)
	}
}

// Stop implements Process.
func (p *child) Stop(grace time.Duration) {
	if grace > 0 {
		p.signal(syscall.SIGTERM)
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-p.done:
			return
		case <-t.C:
		}
	}
	p.signal(syscall.SIGKILL)
	<-p.done
}

// tail passes on what is written to it and keeps the last traceSize bytes.
type tail struct {
	w io.Writer // may be nil

	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - traceSize; over > traceSize {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	if t.w != nil {
		t.w.Write(p)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.buf[max(0, len(t.buf)-traceSize):])
}

// dump asks a Go process for the stacks of its goroutines, with which it ends.
func (p *child) dump() { p.signal(syscall.SIGQUIT) }
