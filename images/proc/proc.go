// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// A Process is a running child, reaped as soon as it ends.
type Process struct {
	name string
	pid  int
	done chan struct{}
	err  error // of Wait; valid once done is closed

	mu     sync.Mutex // orders signals with the end: a reaped pid may be somebody else's
	reaped bool
}

// Start starts cmd, whose SysProcAttr it sets.
func Start(cmd *exec.Cmd) (*Process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &Process{name: filepath.Base(cmd.Path), done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- fmt.Errorf("proc: start %s: %w", p.name, err)
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		// The zombie is kept until no signal can be on its way to it.
		waitExited(p.pid)
		p.mu.Lock()
		p.reaped = true
		p.mu.Unlock()
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// PID returns the process id, which is also its group's.
func (p *Process) PID() int { return p.pid }

// Done is closed when the process has ended and its output has been read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended, nil for status 0. It waits for Done.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Signal sends sig to the process's group; a process that has ended gets none.
func (p *Process) Signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		syscall.Kill(-p.pid, sig) //nolint:errcheck // gone is what we want
	}
}

// Stop asks the process to end, waits for grace, and then kills it. It returns
// when the process is gone.
func (p *Process) Stop(grace time.Duration) {
	if grace > 0 {
		p.Signal(syscall.SIGTERM)
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-p.done:
			return
		case <-t.C:
		}
	}
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// outputGrace is how long Run waits for output that somebody outside the group of an
// ended command still holds open.
const outputGrace = 2 * time.Second

// Run runs cmd to its end. When ctx ends first, the command's group is killed and the
// error is the cause.
func Run(ctx context.Context, cmd *exec.Cmd) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = outputGrace
	}
	p, err := Start(cmd)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		p.Stop(0)
		return context.Cause(ctx)
	}
}
