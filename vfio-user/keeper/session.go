// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
)

const (
	maxHeld      = 4096     // requests that wait for a server
	maxHeldBytes = 16 << 20 // and what they carry
	maxPending   = 1 << 15  // requests that a server has
	maxRemotes   = 1 << 10  // DMA messages that the client has
	maxBatch     = 64 << 10
	loudFailures = 8 // refused requests that are logged each; then the 16th, 32nd and so on
	stallTime    = 10 * time.Millisecond
)

// state is what there is to answer the client.
//
//	down --connected--> restoring --state put back--> up
//	up, restoring --connection ended--> lost --process reaped--> down
//
// up goes to lost as well when the server is to be replaced.
type state int

const (
	stateDown      state = iota // no server; the keeper does what it can itself
	stateRestoring              // one that does not have all state yet; as down
	stateUp                     // requests go to the server
	stateLost                   // one that does not answer but may access memory
)

// session is a client and what it has set up.
type session struct {
	k      *Keeper
	conn   *net.UnixConn
	client *vfiouser.Transport
	hello  chan struct{} // closed when the client has proposed a version

	now      time.Time     // when the message that is handled arrived; the reader's
	failures atomic.Uint64 // requests refused

	// Whoever sends to the server holds fwd, so that the order of the client's
	// requests is kept over changes of state. Taken before mu.
	fwd sync.Mutex

	mu        sync.Mutex
	state     state
	live      *link // restoring or up
	absent    bool  // the client waits no more: requests are answered at once
	seq       uint64
	held      []*request // in order of arrival
	heldBytes int
	changes   []change // made by the client while state is restored

	proposal   version
	asked      *request // the version request, until it is answered
	negotiated bool
	agreed     agreement
	layout     *layout // nil before the first server
	config     configSpace
	memory     memory
	irqs       []irqIndex

	remotes    map[uint16]remote // DMA messages that the client has
	lastRemote uint16
}

// remote is a DMA message of a server that the client has.
type remote struct {
	link *link
	id   uint16 // the server's
	cmd  vfiouser.Command
}

// change is one that the client made while the state before was put back.
type change struct {
	dma   dmaMap // with a reference
	unmap *unmap
	irq   bool
	index uint32
}

func newSession(k *Keeper, c *net.UnixConn) (*session, error) {
	t, err := vfiouser.NewTransport(c, vfiouser.TransportConfig{MaxTransfer: max(k.cfg.MaxTransfer, presetTransfer), MaxFDs: k.cfg.MaxFDs, Spin: k.cfg.Spin})
	if err != nil {
		return nil, err
	}
	return &session{
		k: k, conn: c, client: t, hello: make(chan struct{}), remotes: make(map[uint16]remote),
		memory: memory{files: files{byKey: make(map[fileKey]*file)}},
	}, nil
}

// run serves the client until it goes or ctx ends.
func (s *session) run(ctx context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, s.client.Close)
	var wg sync.WaitGroup
	wg.Go(func() {
		cancel(s.read())
		s.client.Discard()
	})
	wg.Go(func() { s.tick(ctx) })
	s.keep(ctx)
	stop()
	s.client.Close()
	wg.Wait()

	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.held {
		s.dropLocked(r)
	}
	s.dropChangesLocked()
	s.memory.remove(unmap{last: ^uint64(0)})
	for i := range s.irqs {
		s.irqs[i].close()
	}
}

// hungUp reports whether the client has closed its end.
func (s *session) hungUp() bool {
	rc, err := s.conn.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = rc.Control(func(fd uintptr) {
		p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		_, err := unix.Poll(p[:], 0)
		gone = err == nil && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}

// introduced reports whether the client has proposed a version.
func (s *session) introduced() bool {
	select {
	case <-s.hello:
		return true
	default:
		return false
	}
}

// keep connects to one server after another.
func (s *session) keep(ctx context.Context) {
	select {
	case <-s.hello:
	case <-ctx.Done():
		return
	}
	for after := uint32(0); ; {
		p, err := s.k.server(ctx, after)
		if err != nil {
			return
		}
		after = p.gen
		l, err := s.connect(ctx, p)
		served := err == nil
		if served {
			select {
			case <-l.done:
				err = fmt.Errorf("keeper: connection to the server: %w", l.err)
			case <-ctx.Done():
			}
		}
		s.lose(l)
		if ctx.Err() != nil {
			return
		}
		if served {
			p.fail(err, false)
		} else {
			s.k.unfit(p, err)
		}
		if s.k.gone(ctx, p) != nil {
			return
		}
		s.down()
	}
}

// read takes the client's messages until the connection ends.
func (s *session) read() error {
	var stalled time.Time // since when messages may have waited for us
	for {
		m, ok, err := s.client.Next()
		if err != nil {
			return err
		}
		began := time.Now()
		if ok {
			s.now = began
			if !stalled.IsZero() {
				s.now = stalled
			}
			s.handle(&m)
		} else {
			s.flush()
		}
		if stalled.IsZero() && time.Since(began) > stallTime {
			stalled = began
		}
		if ok {
			continue
		}
		began = time.Now()
		if err := s.client.Fill(); err != nil {
			return err
		}
		if time.Since(began) > stallTime {
			stalled = time.Time{} // nothing had waited
		}
	}
}

// flush sends what was gathered for the server. A server that does not read
// makes it wait, and the client with it, until the keeper's patience ends.
func (s *session) flush() {
	s.fwd.Lock()
	defer s.fwd.Unlock()
	s.mu.Lock()
	l := s.live
	s.mu.Unlock()
	if l != nil {
		l.flush()
	}
}

// handle takes one message of the client.
func (s *session) handle(m *vfiouser.Message) {
	if m.Flags&0xf == vfiouser.MessageReply {
		closeFDs(m.FDs)
		s.answered(m)
		return
	}
	s.fwd.Lock()
	defer s.fwd.Unlock()
	s.mu.Lock()
	stub := func() *request {
		return &request{id: m.ID, cmd: m.Command, silent: m.Flags&vfiouser.MessageNoReply != 0}
	}
	switch {
	case m.Flags&0xf != 0:
		closeFDs(m.FDs)
		s.replyError(stub(), fmt.Errorf("message type %d: %w", m.Flags&0xf, syscall.EINVAL))
	case m.Command == vfiouser.CommandVersion:
		closeFDs(m.FDs)
		s.versionLocked(stub(), m)
	case !s.negotiated:
		closeFDs(m.FDs)
		s.replyError(stub(), fmt.Errorf("no version yet: %w", syscall.EINVAL))
	default:
		r, err := s.parse(m)
		if err != nil {
			s.replyError(stub(), err)
		} else if !s.describeLocked(r) {
			s.submitLocked(r)
			return // unlocked
		}
	}
	s.mu.Unlock()
}

// versionLocked takes the client's proposal. It is answered when a server has
// agreed to it.
func (s *session) versionLocked(r *request, m *vfiouser.Message) {
	if s.asked != nil || s.negotiated {
		s.replyError(r, fmt.Errorf("version again: %w", syscall.EINVAL))
		return
	}
	v, err := parseVersion(m.Payload)
	if err == nil && m.Err != nil {
		err = tooBig(m.Err)
	}
	if err != nil {
		s.replyError(r, err)
		return
	}
	v.limit(uint64(s.k.cfg.MaxFDs), uint64(s.k.cfg.MaxTransfer))
	r.arrived, r.silent = s.now, false
	s.proposal, s.asked = v, r
	close(s.hello)
}

// submitLocked has a request served by whom there is. It gives up mu, but not
// fwd.
func (s *session) submitLocked(r *request) {
	defer s.mu.Unlock()
	switch {
	case s.state == stateUp:
		l := s.live
		if len(l.pending) >= maxPending {
			s.replyError(r, fmt.Errorf("%d requests: %w", maxPending, syscall.EBUSY))
			s.dropLocked(r)
			return
		}
		l.forwardLocked(r)
	case r.stateful() && s.state != stateLost:
		s.doLocked(r)
	case s.absent && !r.stateful():
		s.inSteadLocked(r)
	default:
		s.holdLocked(r)
	}
}

// doLocked does a stateful request and answers it.
func (s *session) doLocked(r *request) {
	p, err := s.localLocked(r)
	if err != nil {
		s.replyError(r, err)
	} else {
		s.reply(r, p)
	}
	s.dropLocked(r)
}

// holdLocked keeps a request for the next server, within limits.
func (s *session) holdLocked(r *request) {
	most := maxHeld
	if r.stateful() {
		most = 2 * maxPending // a client may make many maps at once
	}
	if len(s.held) >= most || s.heldBytes+len(r.payload) > maxHeldBytes {
		s.inSteadLocked(r)
		return
	}
	s.held = append(s.held, r)
	s.heldBytes += len(r.payload)
}

// changeLocked notes a change for the server whose state is being restored.
func (s *session) changeLocked(c change) {
	if len(s.changes) >= 2*maxPending {
		s.live.st.Close() // it falls behind; the next one starts from here
	}
	s.changes = append(s.changes, c)
}

func (s *session) dropChangesLocked() {
	for _, c := range s.changes {
		s.memory.files.drop(c.dma.file)
	}
	s.changes = nil
}

// lose ends the connection to a server, if there is one, and takes back what it
// has not answered.
func (s *session) lose(l *link) {
	if l != nil {
		l.st.Close()
		<-l.done
	}
	s.fwd.Lock()
	defer s.fwd.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.live = stateLost, nil
	s.dropChangesLocked()
	if l == nil {
		return
	}
	var back []*request
	for _, r := range l.pending {
		back = append(back, r)
	}
	l.pending = nil
	slices.SortFunc(back, func(a, b *request) int { return cmp.Compare(a.seq, b.seq) })
	held := s.held
	s.held, s.heldBytes = nil, 0
	for _, r := range back {
		switch {
		case r.answered:
			continue
		case r.again():
			s.k.stats.resent.Add(1)
			s.holdLocked(r)
		default:
			s.inSteadLocked(r)
		}
	}
	for _, r := range held {
		s.holdLocked(r)
	}
}

// down notes that the last server can touch nothing any more, and does what
// had to wait for that.
func (s *session) down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = stateDown
	held := s.held
	s.held, s.heldBytes = nil, 0
	for _, r := range held {
		if r.stateful() {
			s.doLocked(r)
		} else {
			s.holdLocked(r)
		}
	}
}

// quiesce gives p no further requests and waits for its answers.
func (s *session) quiesce(p *running) {
	s.fwd.Lock()
	s.mu.Lock()
	l := s.live
	if l == nil || l.p != p || s.state != stateUp {
		s.mu.Unlock()
		s.fwd.Unlock()
		return
	}
	s.state = stateLost
	idle := make(chan struct{})
	l.idle = idle
	if len(l.pending) == 0 {
		close(idle)
		l.idle = nil
	}
	s.mu.Unlock()
	l.flush()
	s.fwd.Unlock()
	timer := time.NewTimer(s.k.cfg.QuietTime)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	case <-l.done:
	}
}

// tick looks after requests that have waited too long, until ctx ends.
func (s *session) tick(ctx context.Context) {
	// A request may be found overdue twice, once at the server that is ended for it:
	// that must take little of the time that a client has left.
	t := time.NewTicker(max(s.k.cfg.Patience/30, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			s.overdue(now.Add(-s.k.cfg.Patience))
		case <-ctx.Done():
			return
		}
	}
}

// overdue deals with requests that arrived before then.
func (s *session) overdue(then time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != nil && s.asked.arrived.Before(then) {
		s.replyError(s.asked, fmt.Errorf("no server: %w", syscall.ETIMEDOUT))
		s.asked = nil
		s.client.Close()
		return
	}
	if s.live != nil && s.state != stateRestoring {
		var hung error
		for _, r := range s.live.pending {
			if r.own != nil || !r.arrived.Before(then) {
				continue
			}
			if hung == nil && r.sent.Before(then) { // else it was held first, and this server is not to blame
				hung = fmt.Errorf("keeper: no answer to %v", r)
			}
			// At once: the client's time runs out while the server is ended.
			if !r.silent && !r.stateful() {
				s.inSteadLocked(r)
				r.silent, r.answered = true, true
			}
		}
		if hung != nil {
			s.absent = true
			s.live.p.fail(hung, true)
			s.live.st.Close()
			return
		}
	}
	if len(s.held) == 0 || !s.held[0].arrived.Before(then) || s.state == stateUp {
		return
	}
	s.absent = true
	held := s.held
	s.held, s.heldBytes = nil, 0
	for _, r := range held {
		if r.stateful() {
			s.holdLocked(r) // until it is known to be true
		} else {
			s.inSteadLocked(r)
		}
	}
}

// String names a request and its place.
func (r *request) String() string {
	switch r.cmd {
	case vfiouser.CommandRegionRead, vfiouser.CommandRegionWrite:
		return fmt.Sprintf("%v of %d bytes at %#x of region %d", r.cmd, r.access.count, r.access.offset, r.access.region)
	}
	return r.cmd.String()
}

// reply answers a request of the client.
func (s *session) reply(r *request, payload []byte) {
	if r.silent {
		return
	}
	m := vfiouser.Message{ID: r.id, Command: r.cmd, Flags: vfiouser.MessageReply, Payload: payload}
	s.send(vfiouser.AppendMessage(nil, &m))
}

func (s *session) replyError(r *request, err error) {
	if n := s.failures.Add(1); n <= loudFailures || n&(n-1) == 0 {
		s.k.log.Warn("keeper: request refused", "request", r, "err", err, "refused", n)
	}
	if r.silent {
		return
	}
	s.send(vfiouser.AppendMessage(nil, &vfiouser.Message{ID: r.id, Command: r.cmd, Flags: vfiouser.MessageReply | vfiouser.MessageError, Errno: errnoOf(err)}))
}

// send sends to the client. A failure ends the session by itself.
func (s *session) send(b []byte) {
	if err := s.client.Send(b); err != nil {
		s.client.Close()
	}
}

func errnoOf(err error) syscall.Errno {
	var e syscall.Errno
	if errors.As(err, &e) && e != 0 {
		return e
	}
	return syscall.EIO
}

// count adds what there is of the session.
func (s *session) count(st *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Ready = s.state == stateUp
	st.Maps, st.Files, st.Held = s.memory.maps.count, len(s.memory.files.byKey), len(s.held)
}
