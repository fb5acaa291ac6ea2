// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"toebox/vfio-user/keeper"
)

const (
	maxOrder   = 1 << 20 // bytes of a line
	maxOrders  = 16      // that wait for the one under way
	maxReports = 256     // that nobody has read yet
	reportTime = 5 * time.Second
)

// server is the command that the next start uses.
type server struct {
	mu   sync.Mutex
	args []string
}

func (s *server) get() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.args
}

func (s *server) set(args []string) (old []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, s.args = s.args, args
	return old
}

// control is a control connection. Reports of events that its other end does not
// take are dropped: the device comes first. Answers to orders wait, and only the
// orders behind them do with them.
type control struct {
	conn    net.Conn
	log     *slog.Logger
	reports chan keeper.Report
	deaf    chan struct{} // closed when no report can be sent any more
	server  *server
}

// newControl takes over an inherited socket.
func newControl(fd int, s *server, log *slog.Logger) (*control, error) {
	f, err := inherited(fd, "control")
	if err != nil {
		return nil, fmt.Errorf("--control-fd: %w", err)
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("--control-fd: %w", err)
	}
	return &control{conn: conn, log: log, server: s, reports: make(chan keeper.Report, maxReports), deaf: make(chan struct{})}, nil
}

// event is keeper.Config.Event.
func (c *control) event(e keeper.Event) {
	select {
	case c.reports <- e.Report():
	default:
		c.log.Warn("keeper: nobody takes the reports", "kind", e.Kind.String())
	}
}

// write sends reports until ctx ends or the connection does.
func (c *control) write(ctx context.Context) {
	defer close(c.deaf)
	enc := json.NewEncoder(c.conn)
	for {
		select {
		case r := <-c.reports:
			c.conn.SetWriteDeadline(time.Now().Add(reportTime))
			if err := enc.Encode(r); err != nil {
				// Half a line may be out: no more can follow it. Orders are still
				// taken, and the device goes on.
				c.log.Warn("keeper: nobody takes the reports", "err", err)
				if u, ok := c.conn.(*net.UnixConn); ok {
					u.CloseWrite()
				}
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// read takes lines until the connection ends, which it notices whatever order is under
// way, but for more orders than have room to wait.
func (c *control) read(ctx context.Context, orders chan<- []byte) {
	defer close(orders)
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(nil, maxOrder)
	for lines.Scan() {
		select {
		case orders <- bytes.Clone(lines.Bytes()):
		case <-ctx.Done():
			return
		}
	}
}

// obey does what orders say, one after another, and answers each.
func (c *control) obey(ctx context.Context, k *keeper.Keeper, orders <-chan []byte) {
	for line := range orders {
		if ctx.Err() != nil {
			return
		}
		var o keeper.Order
		err := json.Unmarshal(line, &o)
		if err == nil && len(o.Server) == 0 {
			err = fmt.Errorf("no server in the order")
		}
		if err == nil {
			err = c.replace(ctx, k, o.Server)
		}
		r := keeper.Report{Kind: keeper.KindReplaced, Generation: k.Stats().Generation}
		if err != nil {
			r.Error = err.Error()
		}
		select {
		case c.reports <- r:
		case <-c.deaf:
		case <-ctx.Done():
		}
	}
}

// replace has another command serve. If that cannot, the one before does again.
func (c *control) replace(ctx context.Context, k *keeper.Keeper, args []string) error {
	if _, err := exec.LookPath(args[0]); err != nil {
		return err // known before anything is stopped
	}
	old := c.server.set(args)
	err := replace(ctx, k)
	if err == nil {
		return nil
	}
	c.log.Error("keeper: replace", "err", err)
	c.server.set(old)
	if back := replace(ctx, k); back != nil {
		return fmt.Errorf("%w; nor can the one before: %w", err, back)
	}
	return err
}

// inherited takes over an inherited descriptor. The servers do not get it by
// accident.
func inherited(fd int, name string) (*os.File, error) {
	if fd <= 2 {
		return nil, fmt.Errorf("%d is no number of an inherited file descriptor", fd)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("file descriptor %d: %w", fd, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
