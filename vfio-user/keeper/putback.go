// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
)

// window is how many requests of its own the keeper has under way at once.
const window = 4096

// errNotUp ends the wait for a server to take its state.
var errNotUp = errors.New("it did not take its state in time")

// post makes a request of the keeper's own. done is called once, from another
// goroutine, unless post fails.
func (l *link) post(cmd vfiouser.Command, payload []byte, done func(*result), fds ...int) error {
	s := l.s
	r := &request{cmd: cmd, own: &result{done: done}}
	s.mu.Lock()
	if l.ended {
		s.mu.Unlock()
		return l.broken(cmd)
	}
	m := vfiouser.Message{ID: l.addLocked(r), Command: cmd, Payload: payload}
	s.mu.Unlock()
	_ = l.st.Send(vfiouser.AppendMessage(nil, &m), fds...) // an error ends the connection, and so the request
	return nil
}

func (l *link) broken(cmd vfiouser.Command) error {
	return fmt.Errorf("keeper: %v: the connection ended: %w", cmd, syscall.EPIPE)
}

// call makes a request of the keeper's own and waits for the answer.
func (l *link) call(ctx context.Context, cmd vfiouser.Command, payload []byte, fds ...int) ([]byte, error) {
	done := make(chan *result, 1)
	if err := l.post(cmd, payload, func(r *result) { done <- r }, fds...); err != nil {
		return nil, err
	}
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("keeper: %v: %w", cmd, r.err)
		}
		return r.payload, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("keeper: %v: %w", cmd, context.Cause(ctx))
	}
}

// batch is a run of requests whose answers are awaited together.
type batch struct {
	l     *link
	slots chan struct{}
	wg    sync.WaitGroup
	mu    sync.Mutex
	err   error
}

func (l *link) batch() *batch { return &batch{l: l, slots: make(chan struct{}, window)} }

// post adds a request. what describes it, for the error.
func (b *batch) post(ctx context.Context, cmd vfiouser.Command, payload []byte, what func() string, fds ...int) {
	select {
	case b.slots <- struct{}{}:
	case <-ctx.Done():
		b.fail(context.Cause(ctx))
		return
	}
	b.wg.Add(1)
	err := b.l.post(cmd, payload, func(r *result) {
		if r.err != nil {
			b.fail(fmt.Errorf("keeper: %s: %w", what(), r.err))
		}
		<-b.slots
		b.wg.Done()
	}, fds...)
	if err != nil {
		b.fail(err)
		<-b.slots
		b.wg.Done()
	}
}

func (b *batch) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
}

// wait waits for all answers and returns the first error.
func (b *batch) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		b.fail(context.Cause(ctx))
		b.l.st.Close() // fails what is under way
	})
	defer stop()
	b.wg.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// connect connects to p, puts the state back and has it serve the client. With
// an error the link, if there is one, is still to be given to lose.
func (s *session) connect(ctx context.Context, p *running) (*link, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.k.cfg.StartTimeout, errNotUp)
	defer cancel()
	c, err := p.Dial(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	st, err := vfiouser.NewTransport(c, vfiouser.TransportConfig{
		MaxTransfer: max(s.k.cfg.MaxTransfer, presetTransfer), MaxFDs: s.k.cfg.MaxFDs, Spin: s.k.cfg.Spin, SendTimeout: s.k.cfg.SendTimeout,
	})
	if err != nil {
		return nil, err
	}
	l := &link{s: s, p: p, st: st, done: make(chan struct{}), pending: make(map[uint16]*request)}
	s.mu.Lock()
	s.state, s.live = stateRestoring, l
	s.mu.Unlock()
	go l.read()
	stop := context.AfterFunc(ctx, st.Close) // unblocks what sends
	defer stop()
	maps, err := s.putBack(ctx, l)
	if err != nil {
		return l, err
	}
	s.k.ready(p, time.Since(began), maps)
	return l, nil
}

// putBack gives a server what the client has set up, and then the client.
func (s *session) putBack(ctx context.Context, l *link) (maps int, err error) {
	reply, err := s.introduce(ctx, l)
	if err != nil {
		return 0, err
	}
	now, err := l.inventory(ctx, s.agreed.transfer)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	if s.layout == nil {
		s.layout, s.config = now, newConfigSpace(now.config)
		for _, q := range now.irqs {
			s.irqs = append(s.irqs, newIRQIndex(int(q.count)))
		}
	} else if d := now.difference(s.layout); d != "" {
		s.mu.Unlock()
		return 0, fmt.Errorf("keeper: another device: %s: %w", d, syscall.ESTALE)
	}
	// From here on what the client changes is noted.
	all := s.memory.maps.all()
	for _, m := range all {
		if m.file != nil {
			m.file.refs++
		}
	}
	for i := range s.irqs {
		if s.irqs[i].set() {
			s.changeLocked(change{irq: true, index: uint32(i)})
		}
	}
	s.mu.Unlock()

	b := l.batch()
	for _, m := range all {
		s.postMap(ctx, b, m)
	}
	err = b.wait(ctx)
	s.mu.Lock()
	for _, m := range all {
		s.memory.files.drop(m.file)
	}
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	// Once with the client going on, then with the rest while it cannot.
	if err := s.putBackChanges(ctx, l); err != nil {
		return 0, err
	}
	s.fwd.Lock()
	defer s.fwd.Unlock()
	if err := s.putBackChanges(ctx, l); err != nil {
		return 0, err
	}
	s.mu.Lock()
	final := s.config.final()
	s.mu.Unlock()
	for _, w := range final {
		a := access{w.at, regionConfig, uint32(len(w.data))}
		if _, err := l.call(ctx, vfiouser.CommandRegionWrite, append(a.append(nil), w.data...)); err != nil {
			return 0, fmt.Errorf("config space %#x: %w", w.at, err)
		}
	}
	s.mu.Lock()
	if l.ended {
		s.mu.Unlock()
		return 0, l.broken(vfiouser.CommandVersion)
	}
	s.state, s.absent = stateUp, false
	if s.asked != nil {
		s.negotiated = true
		s.reply(s.asked, reply)
		s.asked = nil
	}
	held := s.held
	s.held, s.heldBytes = nil, 0
	for _, r := range held {
		l.forwardLocked(r)
	}
	maps = s.memory.maps.count
	s.mu.Unlock()
	l.flush()
	return maps, nil
}

// introduce agrees on a version with a server: the client's, or what the client
// was told before. It returns the answer for the client.
func (s *session) introduce(ctx context.Context, l *link) ([]byte, error) {
	ask, err := s.proposal.append(nil)
	if err != nil {
		return nil, fmt.Errorf("keeper: version: %w", err)
	}
	p, err := l.call(ctx, vfiouser.CommandVersion, ask)
	if err != nil {
		return nil, err
	}
	v, err := parseVersion(p)
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	if v.major != s.proposal.major || v.minor > s.proposal.minor {
		return nil, fmt.Errorf("keeper: version %d.%d to a proposal of %d.%d: %w", v.major, v.minor, s.proposal.major, s.proposal.minor, syscall.EPROTO)
	}
	a := v.agreement(s.proposal)
	if a.transfer == 0 {
		return nil, fmt.Errorf("keeper: the server takes no data: %w", syscall.EPROTO)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.layout == nil {
		s.agreed = a
	} else if d := a.difference(s.agreed); d != "" {
		return nil, fmt.Errorf("keeper: another device: %s: %w", d, syscall.ESTALE)
	}
	return v.append(nil)
}

// inventory asks for all that the client learns once.
func (l *link) inventory(ctx context.Context, transfer uint64) (*layout, error) {
	p, err := l.call(ctx, vfiouser.CommandDeviceInfo, words(nil, deviceInfoSize, 0, 0, 0))
	if err != nil {
		return nil, err
	}
	if len(p) < deviceInfoSize || native32(p, 8) > maxRegions || native32(p, 12) > maxIRQs {
		return nil, fmt.Errorf("keeper: device information % x: %w", p, syscall.EPROTO)
	}
	n := &layout{flags: native32(p, 4), regions: make([]regionLayout, native32(p, 8)), irqs: make([]irqLayout, native32(p, 12))}
	for i := range n.regions {
		ask := words(nil, regionInfoSize, 0, uint32(i), 0)
		p, err := l.call(ctx, vfiouser.CommandRegionInfo, nativeAppend64(nativeAppend64(ask, 0), 0))
		var e *vfiouser.Error
		switch {
		case errors.As(err, &e):
			n.regions[i].errno = e.Errno
		case err != nil:
			return nil, err
		case len(p) < regionInfoSize:
			return nil, fmt.Errorf("keeper: region information % x: %w", p, syscall.EPROTO)
		default:
			n.regions[i] = regionLayout{flags: native32(p, 4) & (regionReadable | regionWritable), size: native64(p, 16)}
		}
	}
	for i := range n.irqs {
		p, err := l.call(ctx, vfiouser.CommandIRQInfo, words(nil, irqInfoSize, 0, uint32(i), 0))
		var e *vfiouser.Error
		switch {
		case errors.As(err, &e):
			n.irqs[i].errno = e.Errno
		case err != nil:
			return nil, err
		case len(p) < irqInfoSize || native32(p, 12) > maxVectors:
			return nil, fmt.Errorf("keeper: irq information % x: %w", p, syscall.EPROTO)
		default:
			n.irqs[i] = irqLayout{flags: native32(p, 4), count: native32(p, 12)}
		}
	}
	if len(n.regions) > regionConfig && n.regions[regionConfig].flags&regionReadable != 0 {
		n.config, err = l.readConfig(ctx, min(n.regions[regionConfig].size, maxConfig), transfer)
	}
	return n, err
}

func (l *link) readConfig(ctx context.Context, size, transfer uint64) ([]byte, error) {
	var space []byte
	for uint64(len(space)) < size {
		a := access{uint64(len(space)), regionConfig, uint32(min(size-uint64(len(space)), transfer))}
		p, err := l.call(ctx, vfiouser.CommandRegionRead, a.append(nil))
		if err != nil {
			return nil, err
		}
		if len(p) != accessSize+int(a.count) {
			return nil, fmt.Errorf("keeper: %d bytes of config space: %w", len(p), syscall.EPROTO)
		}
		space = append(space, p[accessSize:]...)
	}
	return space, nil
}

func (s *session) postMap(ctx context.Context, b *batch, m dmaMap) {
	what := func() string { return fmt.Sprintf("DMA map [%#x, %#x]", m.addr, m.last) }
	if m.file == nil {
		b.post(ctx, vfiouser.CommandDMAMap, m.append(nil), what)
	} else {
		b.post(ctx, vfiouser.CommandDMAMap, m.append(nil), what, m.file.fd)
	}
}

// putBackChanges gives a server the changes that the client has made lately.
func (s *session) putBackChanges(ctx context.Context, l *link) error {
	s.mu.Lock()
	changes := s.changes
	s.changes = nil
	s.mu.Unlock()
	b := l.batch()
	for _, c := range changes {
		switch {
		case c.irq:
			s.postIRQ(ctx, b, c.index)
		case c.unmap != nil:
			b.post(ctx, vfiouser.CommandDMAUnmap, c.unmap.request(nil), func() string { return fmt.Sprintf("DMA unmap [%#x, %#x]", c.unmap.addr, c.unmap.last) })
		default:
			s.postMap(ctx, b, c.dma)
		}
	}
	err := b.wait(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		s.memory.files.drop(c.dma.file)
	}
	return err
}

// postIRQ gives a server all that is set of an IRQ index.
func (s *session) postIRQ(ctx context.Context, b *batch, index uint32) {
	type ask struct {
		set irqSet
		fds []int // copies: the client may change its own meanwhile
	}
	var asks []ask
	s.mu.Lock()
	s.irqs[index].requests(index, int(s.agreed.fds), func(r irqSet, fds []int) {
		a := ask{set: r}
		for _, fd := range fds {
			n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				b.fail(fmt.Errorf("keeper: irq %d: %w", index, err))
				break
			}
			a.fds = append(a.fds, n)
		}
		asks = append(asks, a)
	})
	s.mu.Unlock()
	for _, a := range asks {
		b.post(ctx, vfiouser.CommandSetIRQs, a.set.append(nil), func() string { return fmt.Sprintf("irq %d, vectors from %d on", index, a.set.start) }, a.fds...)
		closeFDs(a.fds)
	}
}
