// SPDX-License-Identifier: Apache-2.0

package qtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"toebox/images/proc"
)

const (
	startPatience = 20 * time.Second
	stopGrace     = 2 * time.Second
	maxLog        = 64 << 10 // bytes of QEMU's complaints kept
)

// Config describes a machine without running CPUs.
type Config struct {
	Command func(args ...string) *exec.Cmd // runs QEMU
	Dir     string                         // short and writable, for the socket; removed by nobody here
	Memory  uint64                         // bytes of RAM at guest physical 0, in a file to be mapped
	Args    []string                       // devices and the like
}

// A Machine is a running QEMU under qtest.
type Machine struct {
	*Client
	RAM  *os.File // the machine's memory from guest physical 0; owned by the Machine
	proc *proc.Process
	log  *tail
}

// Start runs a q35 machine under qtest and connects to it.
func Start(ctx context.Context, c Config) (*Machine, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startPatience, errors.New("qtest: QEMU did not connect in time"))
	defer cancel()
	path := filepath.Join(c.Dir, "qtest")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("qtest: %w", err)
	}
	defer l.Close() //nolint:errcheck // one connection is enough; removes the socket
	ram, err := os.OpenFile(filepath.Join(c.Dir, "ram"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("qtest: %w", err)
	}
	if err := ram.Truncate(int64(c.Memory)); err != nil {
		ram.Close() //nolint:errcheck // the other error is the one to tell
		return nil, fmt.Errorf("qtest: %w", err)
	}
	args := append([]string{
		"-accel", "qtest", "-display", "none", "-nodefaults", "-no-user-config",
		"-machine", "q35,memory-backend=m",
		"-object", fmt.Sprintf("memory-backend-file,id=m,size=%d,mem-path=%s,share=on", c.Memory, ram.Name()),
		"-qtest", "unix:" + path, "-qtest-log", os.DevNull,
	}, c.Args...)
	m := &Machine{RAM: ram, log: &tail{}}
	cmd := c.Command(args...)
	cmd.Stdout, cmd.Stderr = m.log, m.log
	if m.proc, err = proc.Start(cmd); err != nil {
		ram.Close() //nolint:errcheck // the other error is the one to tell
		return nil, err
	}
	go func() {
		select {
		case <-ctx.Done():
		case <-m.proc.Done():
		}
		l.Close() //nolint:errcheck // ends the wait below
	}()
	conn, err := l.Accept()
	if err != nil {
		m.proc.Stop(0)
		ram.Close() //nolint:errcheck // the other error is the one to tell
		if why := m.log.String(); why != "" && ctx.Err() == nil {
			return nil, fmt.Errorf("qtest: QEMU: %s", why)
		}
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, fmt.Errorf("qtest: QEMU ended: %w", m.proc.Err())
	}
	m.Client = New(conn)
	return m, nil
}

// Close ends QEMU and returns when it is gone.
func (m *Machine) Close() error {
	m.Client.Close() //nolint:errcheck // QEMU goes with it
	m.proc.Stop(stopGrace)
	return m.RAM.Close()
}

// Done is closed when QEMU has ended.
func (m *Machine) Done() <-chan struct{} { return m.proc.Done() }

// Log returns what QEMU has complained about.
func (m *Machine) Log() string { return m.log.String() }

// tail keeps the first maxLog bytes written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p[:min(len(p), maxLog-t.buf.Len())])
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf.Bytes()))
}
