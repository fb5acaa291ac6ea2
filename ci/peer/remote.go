// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"toebox/ci/conformance"
)

// call is one line from the client; reply the line that answers it.
type call struct {
	ID      uint64
	Method  string             // serve, dial, reachable, hairpin, refused, unwilling, datagrams, unreachable, hang, impair, flood, sync, signal, result, close
	Session uint64             `json:",omitempty"`
	Script  conformance.Script `json:",omitempty"`
	Port    uint16             `json:",omitempty"`
	N       int                `json:",omitempty"`
	Rules   string             `json:",omitempty"`
	IPv6    bool               `json:",omitempty"`
	Flood   conformance.Flood  `json:",omitzero"`
}

type reply struct {
	ID      uint64
	Err     string              `json:",omitempty"`
	Session uint64              `json:",omitempty"`
	Addr    netip.AddrPort      `json:",omitzero"`
	Ports   []uint16            `json:",omitempty"`
	Result  *conformance.Result `json:",omitempty"`
	Harm    *conformance.Harm   `json:",omitempty"`
}

// Bounds on what a remote client may ask for.
const (
	maxLine  = 64 << 10
	maxCalls = 256
	maxPorts = 64
)

// Serve answers the calls of one client until rw ends. It closes the sessions
// that the client left open.
func Serve(ctx context.Context, rw io.ReadWriter, p conformance.Peer) error {
	ctx, cancel := context.WithCancel(ctx)
	s := &server{p: p, w: rw, sessions: map[uint64]conformance.Session{}}
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		for _, x := range s.sessions {
			x.Close()
		}
	}()
	slots := make(chan struct{}, maxCalls)
	in := bufio.NewScanner(rw)
	in.Buffer(make([]byte, 4096), maxLine)
	for in.Scan() {
		var c call
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			return fmt.Errorf("peer: serve: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			s.send(reply{ID: c.ID, Err: "too many calls in flight"})
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			r := s.answer(ctx, &c)
			r.ID = c.ID
			s.send(r)
		})
	}
	return in.Err()
}

type server struct {
	p conformance.Peer

	wmu sync.Mutex
	w   io.Writer

	mu       sync.Mutex
	next     uint64
	sessions map[uint64]conformance.Session
}

// send writes one reply; a client that is gone ends the reading side too.
func (s *server) send(r reply) {
	b, err := json.Marshal(r)
	if err != nil {
		return // cannot be: reply has plain fields only
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	_, _ = s.w.Write(append(b, '\n'))
}

func (s *server) answer(ctx context.Context, c *call) (r reply) {
	p := s.p
	if c.IPv6 {
		if p = p.IPv6(); p == nil {
			r.Err = "no IPv6"
			return r
		}
	}
	var err error
	switch c.Method {
	case "serve", "dial", "datagrams":
		var x conformance.Session
		switch c.Method {
		case "serve":
			x, err = p.Serve(ctx, c.Script)
		case "dial":
			x, err = p.Dial(ctx, c.Port, c.Script)
		default:
			x, err = p.Datagrams(ctx)
		}
		if err == nil {
			s.mu.Lock()
			s.next++
			r.Session = s.next
			s.sessions[s.next] = x
			s.mu.Unlock()
			r.Addr = x.Addr()
		}
	case "reachable":
		if c.N < 1 || c.N > maxPorts {
			err = errors.New("bad number of ports")
			break
		}
		r.Ports, err = p.Reachable(ctx, c.N)
	case "hairpin":
		r.Addr, err = p.Hairpin(ctx, c.Port)
	case "refused":
		r.Addr, err = p.Refused(ctx)
	case "unwilling":
		r.Addr, err = p.Unwilling(ctx)
	case "hang":
		r.Addr, err = p.Hang(ctx)
	case "impair":
		var harm conformance.Harm
		harm, err = p.Impair(ctx, c.Rules)
		r.Harm = &harm
	case "flood":
		err = s.p.Flood(ctx, c.Flood)
	case "unreachable":
		r.Addr = p.Unreachable()
	case "sync":
	case "signal", "result", "close":
		s.mu.Lock()
		x := s.sessions[c.Session]
		if c.Method == "close" {
			delete(s.sessions, c.Session)
		}
		s.mu.Unlock()
		if x == nil {
			err = net.ErrClosed
			break
		}
		switch c.Method {
		case "signal":
			err = x.Signal(ctx)
		case "result":
			var res conformance.Result
			res, err = x.Result(ctx)
			r.Result = &res
		case "close":
			err = x.Close()
		}
	default:
		err = fmt.Errorf("unknown method %q", c.Method)
	}
	if err != nil {
		r.Err = err.Error()
	}
	return r
}

// Remote is a conformance.Peer that another process provides.
type Remote struct {
	*wire
	ipv6   bool
	six    *Remote // over IPv6; nil: there is none
	nobody netip.AddrPort
}

// wire is the connection to the other process.
type wire struct {
	wmu sync.Mutex
	rw  io.ReadWriter

	mu   sync.Mutex
	id   uint64
	wait map[uint64]chan reply
	err  error
}

// NewRemote talks to a [Serve] at the other end of rw. It takes over reading;
// Close closes rw if it can be closed.
func NewRemote(ctx context.Context, rw io.ReadWriter) (*Remote, error) {
	w := &wire{rw: rw, wait: map[uint64]chan reply{}}
	go w.read()
	r, six := &Remote{wire: w}, &Remote{wire: w, ipv6: true}
	a, err := r.call(ctx, call{Method: "unreachable"})
	if err != nil {
		return nil, err
	}
	r.nobody = a.Addr
	if a, err := six.call(ctx, call{Method: "unreachable"}); err == nil {
		r.six, six.nobody = six, a.Addr
	}
	return r, nil
}

func (r *Remote) call(ctx context.Context, c call) (reply, error) {
	c.IPv6 = r.ipv6
	return r.wire.call(ctx, c)
}

func (r *wire) read() {
	in := bufio.NewScanner(r.rw)
	in.Buffer(make([]byte, 4096), maxLine)
	var err error
	for in.Scan() {
		var v reply
		if err = json.Unmarshal(bytes.TrimSpace(in.Bytes()), &v); err != nil {
			break
		}
		r.mu.Lock()
		ch := r.wait[v.ID]
		delete(r.wait, v.ID)
		r.mu.Unlock()
		if ch != nil {
			ch <- v
		}
	}
	if err == nil {
		err = in.Err()
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	for id, ch := range r.wait {
		delete(r.wait, id)
		close(ch)
	}
}

func (r *wire) call(ctx context.Context, c call) (reply, error) {
	ch := make(chan reply, 1)
	r.mu.Lock()
	if r.err != nil {
		r.mu.Unlock()
		return reply{}, fmt.Errorf("peer: %s: %w", c.Method, r.err)
	}
	r.id++
	c.ID = r.id
	r.wait[c.ID] = ch
	r.mu.Unlock()
	b, err := json.Marshal(c)
	if err != nil {
		return reply{}, fmt.Errorf("peer: %s: %w", c.Method, err)
	}
	r.wmu.Lock()
	_, err = r.rw.Write(append(b, '\n'))
	r.wmu.Unlock()
	if err != nil {
		return reply{}, fmt.Errorf("peer: %s: %w", c.Method, err)
	}
	select {
	case v, ok := <-ch:
		if !ok {
			return reply{}, fmt.Errorf("peer: %s: %w", c.Method, io.ErrUnexpectedEOF)
		}
		if v.Err != "" {
			return reply{}, fmt.Errorf("peer: %s: %s", c.Method, v.Err)
		}
		return v, nil
	case <-ctx.Done():
		r.mu.Lock()
		delete(r.wait, c.ID)
		r.mu.Unlock()
		return reply{}, fmt.Errorf("peer: %s: %w", c.Method, ctx.Err())
	}
}

func (r *Remote) session(ctx context.Context, c call) (conformance.Session, error) {
	v, err := r.call(ctx, c)
	if err != nil {
		return nil, err
	}
	return &remoteSession{r: r, id: v.Session, addr: v.Addr}, nil
}

// Serve implements conformance.Peer.
func (r *Remote) Serve(ctx context.Context, s conformance.Script) (conformance.Session, error) {
	return r.session(ctx, call{Method: "serve", Script: s})
}

// Dial implements conformance.Peer.
func (r *Remote) Dial(ctx context.Context, port uint16, s conformance.Script) (conformance.Session, error) {
	return r.session(ctx, call{Method: "dial", Port: port, Script: s})
}

// Reachable implements conformance.Peer.
func (r *Remote) Reachable(ctx context.Context, n int) ([]uint16, error) {
	v, err := r.call(ctx, call{Method: "reachable", N: n})
	return v.Ports, err
}

// Hairpin implements conformance.Peer.
func (r *Remote) Hairpin(ctx context.Context, port uint16) (netip.AddrPort, error) {
	v, err := r.call(ctx, call{Method: "hairpin", Port: port})
	return v.Addr, err
}

// Refused implements conformance.Peer.
func (r *Remote) Refused(ctx context.Context) (netip.AddrPort, error) {
	v, err := r.call(ctx, call{Method: "refused"})
	return v.Addr, err
}

// Datagrams implements conformance.Peer.
func (r *Remote) Datagrams(ctx context.Context) (conformance.Session, error) {
	return r.session(ctx, call{Method: "datagrams"})
}

// Unwilling implements conformance.Peer.
func (r *Remote) Unwilling(ctx context.Context) (netip.AddrPort, error) {
	v, err := r.call(ctx, call{Method: "unwilling"})
	return v.Addr, err
}

// Hang implements conformance.Peer.
func (r *Remote) Hang(ctx context.Context) (netip.AddrPort, error) {
	v, err := r.call(ctx, call{Method: "hang"})
	return v.Addr, err
}

// Impair implements conformance.Peer.
func (r *Remote) Impair(ctx context.Context, rules string) (conformance.Harm, error) {
	v, err := r.call(ctx, call{Method: "impair", Rules: rules})
	if err != nil || v.Harm == nil {
		return conformance.Harm{}, err
	}
	return *v.Harm, nil
}

// Flood implements conformance.Peer.
func (r *Remote) Flood(ctx context.Context, f conformance.Flood) error {
	_, err := r.call(ctx, call{Method: "flood", Flood: f})
	return err
}

// Sync returns when all that was written to the stream before, by whomever, is
// with the other process.
func (r *Remote) Sync(ctx context.Context) error {
	_, err := r.call(ctx, call{Method: "sync"})
	return err
}

// Unreachable implements conformance.Peer.
func (r *Remote) Unreachable() netip.AddrPort { return r.nobody }

// IPv6 implements conformance.Peer.
func (r *Remote) IPv6() conformance.Peer {
	if r.six == nil {
		return nil
	}
	return r.six
}

// Close ends the connection to the other process.
func (r *Remote) Close() error {
	if c, ok := r.rw.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

type remoteSession struct {
	r    *Remote
	id   uint64
	addr netip.AddrPort
}

func (s *remoteSession) Addr() netip.AddrPort { return s.addr }

func (s *remoteSession) Signal(ctx context.Context) error {
	_, err := s.r.call(ctx, call{Method: "signal", Session: s.id})
	return err
}

func (s *remoteSession) Result(ctx context.Context) (conformance.Result, error) {
	v, err := s.r.call(ctx, call{Method: "result", Session: s.id})
	if err != nil || v.Result == nil {
		return conformance.Result{}, err
	}
	return *v.Result, nil
}

func (s *remoteSession) Close() error {
	_, err := s.r.call(context.Background(), call{Method: "close", Session: s.id})
	return err
}

// IsCall tells a client's calls from other lines of JSON on the same stream.
func IsCall(line []byte) bool {
	var c struct{ Method string }
	return bytes.Contains(line, []byte(`"Method"`)) && json.Unmarshal(line, &c) == nil && c.Method != ""
}
