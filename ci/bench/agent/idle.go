// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"toebox/ci/bench/task"
)

// dialers is how many connections are made at a time of those that are to be idle.
const dialers = 32

// idle makes connections, and tells what they take while nothing happens on them.
func (r *run) idle(ctx context.Context) error {
	// Each connection of the kernel's has a file.
	files := unix.Rlimit{Cur: task.MaxConns + 1024, Max: task.MaxConns + 1024}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err == nil && now.Cur < files.Cur {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil && r.task.Side == task.Virtio {
			return fmt.Errorf("limit of open files: %w", err)
		}
	}
	before, err := r.agent.memory(r.task.Side)
	if err != nil {
		return err
	}
	if err := r.begun(); err != nil {
		return err
	}
	defer r.end()
	began := time.Now()
	if err := r.many(ctx); err != nil {
		return err
	}
	r.result.Elapsed = time.Since(began)
	after, err := r.agent.memory(r.task.Side)
	if err != nil {
		return err
	}
	r.result.Ops = uint64(r.task.Conns)
	r.result.Heap, r.result.Memory = after.heap-before.heap, after.all-before.all
	return r.begun() // the other half looks what they take there
}

// many makes the task's connections, several at a time; they end with the run.
func (r *run) many(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	conns := make([]net.Conn, r.task.Conns)
	var work sync.WaitGroup
	for first := range dialers {
		work.Go(func() {
			for i := first; i < len(conns) && ctx.Err() == nil; i += dialers {
				c, err := r.dial(ctx)
				if err != nil {
					stop(err)
					return
				}
				conns[i] = c
			}
		})
	}
	work.Wait()
	r.atEnd(func() {
		for _, c := range conns {
			if c != nil {
				discard(c)
			}
		}
	})
	return context.Cause(ctx)
}

// inUse is memory in use, bytes.
type inUse struct {
	heap int64 // of this program's data
	all  int64 // of the guest's, DMA memory included
}

func (a *Agent) memory(side task.Side) (m inUse, err error) {
	runtime.GC()
	runtime.GC() // what finalizers of the first let go
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	m.heap = int64(s.HeapAlloc)
	b, err := os.ReadFile(filepath.Join(a.cfg.Proc, "meminfo"))
	if err != nil {
		return m, err
	}
	available, err := memAvailable(b)
	m.all = -available
	if side == task.Adapter {
		m.all += int64(a.adapter.Stats().Memory) // of huge pages, which were taken before
	}
	return m, err
}

// memAvailable reads it from /proc/meminfo (proc_meminfo(5)), in bytes.
func memAvailable(meminfo []byte) (int64, error) {
	lines := bufio.NewScanner(bytes.NewReader(meminfo))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 3 && f[0] == "MemAvailable:" && f[2] == "kB" {
			n, err := strconv.ParseInt(f[1], 10, 50)
			return n << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

// hugePagesFile says how many huge pages the kernel keeps.
const hugePagesFile = "sys/vm/nr_hugepages"

// mapping opens the adapter anew and has it see so much memory as the task says, in huge
// pages (Direct) or without; what that takes is the operation's time.
func (r *run) mapping(ctx context.Context) (err error) {
	a := r.agent
	if err := a.Close(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.open(ctx)) }()
	if !r.task.Direct {
		file := filepath.Join(a.cfg.Proc, hugePagesFile)
		had, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte("0"), 0); err != nil {
			return err
		}
		defer func() { _ = os.WriteFile(file, had, 0) }()
	}
	bus, _, err := a.cfg.Bus()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bus.Close()) }()
	if err := r.begun(); err != nil {
		return err
	}
	began := time.Now()
	if _, err := bus.AllocDMA(r.task.Size); err != nil {
		return err
	}
	r.result.Elapsed = time.Since(began)
	r.result.Ops, r.result.Bytes, r.result.Median, r.result.P99 = 1, uint64(r.task.Size), r.result.Elapsed, r.result.Elapsed
	return nil
}
