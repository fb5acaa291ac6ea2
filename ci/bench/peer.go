// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"toebox/ci/bench/task"
)

// Sizes of the peer's calls, bytes.
const (
	sinkSize   = 1 << 20
	sourceSize = 256 << 10
	echoSize   = 64 << 10
)

// Peer is what both devices talk to: servers on the host's kernel. It does as little
// as can be done: it shares the processors with the guest.
type Peer struct {
	listeners map[task.Kind]net.Listener
	mu        sync.Mutex
	conns     map[net.Conn]struct{}
	closed    bool
	work      sync.WaitGroup
}

// NewPeer serves on free ports of an address.
func NewPeer(host string) (*Peer, error) {
	p := &Peer{listeners: map[task.Kind]net.Listener{}, conns: map[net.Conn]struct{}{}}
	for kind, serve := range map[task.Kind]func(*net.TCPConn) error{
		task.Send: sink, task.Receive: source, task.Echo: sendBack, task.Connect: drain,
	} {
		l, err := net.Listen("tcp4", net.JoinHostPort(host, "0"))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("bench: %w", err), p.Close())
		}
		p.listeners[kind] = l
		p.work.Go(func() { p.accept(l, serve) })
	}
	return p, nil
}

// Port is where a kind of task is served; 0: it needs nobody.
func (p *Peer) Port(kind task.Kind) int {
	if kind == task.Bulk || kind == task.Idle {
		kind = task.Connect
	}
	l, ok := p.listeners[kind]
	if !ok {
		return 0
	}
	return l.Addr().(*net.TCPAddr).Port
}

// Of callers: how many there are, and how soon one calls again whom nobody answers.
const (
	callers = 4
	recall  = 5 * time.Millisecond
)

// Call connects to an address and waits for the end of the connection, again and again,
// several at a time, until ctx ends.
func Call(ctx context.Context, address string) {
	var work sync.WaitGroup
	for range callers {
		work.Go(func() {
			wait := time.NewTicker(recall)
			defer wait.Stop()
			for ctx.Err() == nil {
				if call(ctx, address) == nil {
					continue
				}
				select {
				case <-wait.C:
				case <-ctx.Done():
				}
			}
		})
	}
	work.Wait()
}

func call(ctx context.Context, address string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	hangUp := context.AfterFunc(ctx, func() { c.Close() })
	defer hangUp()
	_ = drain(c.(*net.TCPConn)) // its end is what is waited for
	return nil
}

// accept serves each connection until the listener is closed.
func (p *Peer) accept(l net.Listener, serve func(*net.TCPConn) error) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if !p.add(c) {
			c.Close()
			return
		}
		p.work.Go(func() {
			_ = serve(c.(*net.TCPConn)) // the other end is told by the connection's
			p.remove(c)
			c.Close()
		})
	}
}

func (p *Peer) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Peer) remove(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// Close ends all connections and servers. It is idempotent.
func (p *Peer) Close() error {
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	var errs []error
	for _, l := range p.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	p.work.Wait()
	return errors.Join(errs...)
}

// sink drops what comes, without copying it (tcp(7), MSG_TRUNC).
func sink(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, sinkSize)
	for {
		var n int
		var e error
		err := raw.Read(func(fd uintptr) bool {
			for {
				n, _, e = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
				if e != unix.EINTR {
					return e != unix.EAGAIN
				}
			}
		})
		if err != nil {
			return err
		}
		if e != nil {
			return os.NewSyscallError("recvfrom", e)
		}
		if n == 0 {
			return io.EOF
		}
	}
}

// source writes until nobody reads.
func source(c *net.TCPConn) error {
	buf := make([]byte, sourceSize)
	for {
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
}

// sendBack sends back what comes.
func sendBack(c *net.TCPConn) error {
	buf := make([]byte, echoSize)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return err
		}
	}
}

// drain waits for the other end's end.
func drain(c *net.TCPConn) error {
	var buf [1]byte
	_, err := c.Read(buf[:])
	return err
}
