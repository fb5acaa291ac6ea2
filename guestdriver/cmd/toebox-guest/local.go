// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"toebox/vdev/abi"
)

// maxLine bounds a line of the local protocol in bytes.
const maxLine = 64 << 10

// request is what a client asks of the serving process.
type request struct {
	Op      string `json:"op"`                // dial, listen, stats, attr
	Address string `json:"address,omitempty"` // of dial and listen
	Timeout int64  `json:"timeout,omitempty"` // ns, of dial and of the wait for a connection
	Conn    uint64 `json:"conn,omitempty"`    // attr: connection id, 0 for the adapter
	Attr    string `json:"attr,omitempty"`    // attr: name in SPEC.md, "" for all
	Value   string `json:"value,omitempty"`   // attr: value to set
}

// reply answers a request. A listen has two: where it listens, and who came.
type reply struct {
	Error string   `json:"error,omitempty"`
	Local string   `json:"local,omitempty"`
	Peer  string   `json:"peer,omitempty"`
	Lines []string `json:"lines,omitempty"`
}

// network is what the local protocol uses of the driver.
type network interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	Listen(network, address string) (net.Listener, error)
}

// localServer answers the other commands.
type localServer struct {
	net network
	in  inspector
	// driverStats returns the driver's own counters, name and value.
	driverStats func() []string
}

// serve answers clients until l is closed, and returns when all are gone.
func (s *localServer) serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			defer c.Close()
			s.handle(ctx, c.(*net.UnixConn))
		})
	}
}

func (s *localServer) handle(ctx context.Context, c *net.UnixConn) {
	br := bufio.NewReaderSize(c, maxLine)
	line, err := br.ReadSlice('\n')
	if err != nil {
		return // no whole line, or one too long: nobody to answer
	}
	var q request
	if err := json.Unmarshal(line, &q); err != nil {
		writeReply(c, reply{Error: "request: " + err.Error()})
		return
	}
	switch q.Op {
	case "dial":
		s.dial(ctx, c, br, q)
	case "listen":
		s.listen(ctx, c, br, q)
	case "stats":
		s.answer(c, func() ([]string, error) { return s.stats(ctx) })
	case "attr":
		s.answer(c, func() ([]string, error) { return attr(ctx, s.in, q) })
	default:
		writeReply(c, reply{Error: fmt.Sprintf("unknown operation %q", q.Op)})
	}
}

func (s *localServer) answer(c net.Conn, f func() ([]string, error)) {
	lines, err := f()
	if err != nil {
		writeReply(c, reply{Error: err.Error()})
		return
	}
	writeReply(c, reply{Lines: lines})
}

func (s *localServer) dial(ctx context.Context, c *net.UnixConn, br *bufio.Reader, q request) {
	if q.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(q.Timeout))
		defer cancel()
	}
	conn, err := s.net.DialContext(ctx, "tcp", q.Address)
	if err != nil {
		writeReply(c, reply{Error: err.Error()})
		return
	}
	if writeReply(c, reply{Local: conn.LocalAddr().String(), Peer: conn.RemoteAddr().String()}) != nil {
		conn.Close()
		return
	}
	splice(c, br, conn)
}

func (s *localServer) listen(ctx context.Context, c *net.UnixConn, br *bufio.Reader, q request) {
	l, err := s.net.Listen("tcp", q.Address)
	if err != nil {
		writeReply(c, reply{Error: err.Error()})
		return
	}
	defer l.Close()
	if writeReply(c, reply{Local: l.Addr().String()}) != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	if q.Timeout > 0 {
		t := time.AfterFunc(time.Duration(q.Timeout), func() { l.Close() })
		defer t.Stop()
	}
	conn, err := l.Accept()
	if err != nil {
		writeReply(c, reply{Error: err.Error()})
		return
	}
	if writeReply(c, reply{Local: conn.LocalAddr().String(), Peer: conn.RemoteAddr().String()}) != nil {
		conn.Close()
		return
	}
	splice(c, br, conn)
}

func (s *localServer) stats(ctx context.Context) ([]string, error) {
	counters, err := s.in.Counters(ctx)
	if err != nil {
		return nil, err
	}
	var lines []string
	for i, v := range counters {
		lines = append(lines, fmt.Sprintf("adapter.%-24s %d", abi.Counter(i), v))
	}
	return append(lines, s.driverStats()...), nil
}

// closeWriter is a connection with half-close.
type closeWriter interface{ CloseWrite() error }

// splice joins two connections until both directions have ended, passing each
// end of stream on, and closes both.
func splice(c *net.UnixConn, fromC io.Reader, conn net.Conn) {
	defer conn.Close()
	defer c.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := io.Copy(conn, fromC)
		if cw, ok := conn.(closeWriter); err != nil || !ok || cw.CloseWrite() != nil {
			conn.Close()
		}
	})
	if _, err := io.Copy(c, conn); err != nil || c.CloseWrite() != nil {
		c.Close()
	}
	wg.Wait()
}

func writeReply(w io.Writer, r reply) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// readReply reads one reply without reading beyond its line.
func readReply(r io.Reader) (reply, error) {
	var line bytes.Buffer
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return reply{}, fmt.Errorf("the serving process went away: %w", err)
		}
		if b[0] == '\n' {
			break
		}
		if line.Len() >= maxLine {
			return reply{}, errors.New("reply too long")
		}
		line.WriteByte(b[0])
	}
	var rp reply
	if err := json.Unmarshal(line.Bytes(), &rp); err != nil {
		return reply{}, err
	}
	if rp.Error != "" {
		return reply{}, errors.New(rp.Error)
	}
	return rp, nil
}

// ask sends a request and reads the first reply.
func ask(ctx context.Context, socket string, q request) (*net.UnixConn, reply, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("no driver is running (toebox-guest serve): %w", err)
		}
		return nil, reply{}, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	b, err := json.Marshal(q)
	if err == nil {
		_, err = c.Write(append(b, '\n'))
	}
	var rp reply
	if err == nil {
		rp, err = readReply(c)
	}
	if err != nil {
		c.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, reply{}, err
	}
	return c.(*net.UnixConn), rp, nil
}
