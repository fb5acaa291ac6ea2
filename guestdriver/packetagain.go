// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"errors"
	"net/netip"
	"slices"

	"toebox/vdev/abi"
)

// With Options.CarryOver a PacketConn outlives a reset, and a fail-over:
//
//	open --the adapter is reset or gone--> lost --opened again--> open
//	                                        └─ cannot be ──> dead
//
// There is nothing to carry over but the addresses and what was set: what was
// under way is lost, as datagrams may be. Meanwhile writes wait, and reads take
// what came before.

// packetSpec is how an end was opened.
type packetSpec struct {
	kind   kind
	target abi.Target
	at     netip.AddrPort
}

// packetSetting is an attribute that was set.
type packetSetting struct {
	attr  abi.Attribute
	value []byte
	group netip.Addr // valid: of the ends of its family
}

// noteLocked remembers an attribute for a life to come. Leaving a group takes
// back that it was joined.
func (p *PacketConn) noteLocked(s packetSetting) {
	p.settings = slices.DeleteFunc(p.settings, func(o packetSetting) bool {
		if s.attr == abi.AttrJoin || s.attr == abi.AttrLeave {
			return o.group == s.group && o.group.IsValid()
		}
		return o.attr == s.attr
	})
	if s.attr != abi.AttrLeave {
		p.settings = append(p.settings, s)
	}
}

// lose takes the end out, to be opened again; false if its owner is to be told of
// the loss instead.
func (e *packetEnd) lose(err error) bool {
	p, a := e.p, e.ln.a
	if !a.opts.CarryOver || !errors.Is(err, ErrReset) && !errors.Is(err, ErrGone) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.err != nil {
		return false
	}
	e.isGone = true
	p.ends = slices.DeleteFunc(p.ends, func(o *packetEnd) bool { return o == e })
	p.lost = append(p.lost, e.spec)
	p.wcond.Broadcast()
	a.mu.Lock()
	a.packets[p] = struct{}{}
	a.mu.Unlock()
	return true
}

// betweenLocked reports whether the end, or one of its kind, is lost or about to
// be: a write waits.
func (p *PacketConn) betweenLocked() bool { return p.opening || len(p.lost) > 0 }

// takePackets are those that wait to be opened again.
func (a *Adapter) takePackets() map[*PacketConn]struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.packets
	a.packets = map[*PacketConn]struct{}{}
	return all
}

// fail ends what was not opened again.
func (p *PacketConn) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = nil
	p.failLocked(err)
}

// reopen opens what was lost again, on this adapter. Resets may follow each other
// faster than that; who is at it already goes on with it.
func (p *PacketConn) reopen(a *Adapter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = a
	if p.opening {
		return
	}
	p.opening = true
	for tries := 0; len(p.lost) > 0 && !p.closed && p.err == nil; {
		s := p.lost[0]
		p.lost = p.lost[1:]
		err := p.reopenLocked(s)
		switch {
		case err == nil:
		case tries < startAttempts && (errors.Is(err, ErrReset) || errors.Is(err, ErrStandby)):
			tries++
			p.lost = append(p.lost, s)
		default:
			p.failLocked(err)
		}
	}
	p.opening = false
	p.wcond.Broadcast()
}

// reopenLocked opens an end where it was. It gives the lock up meanwhile.
func (p *PacketConn) reopenLocked(s packetSpec) error {
	a, settings, local := p.next, slices.Clone(p.settings), p.local.AddrPort()
	p.mu.Unlock()
	defer p.mu.Lock()
	at := netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	if s.kind == kindListen {
		at = netip.AddrPortFrom(s.at.Addr(), local.Port())
		s.at = at
	}
	s.target.Local = at
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	e, err := p.open(ctx, a.lane(), s.kind, s.target, s.at, p.born.over(a.defaults.Load(), nil).list()...)
	if err != nil {
		return err
	}
	for _, set := range settings {
		if set.group.IsValid() && set.group.Is6() != e.v6 {
			continue
		}
		if err := a.SetAttribute(ctx, e.id, set.attr, set.value); err != nil {
			return err
		}
	}
	return nil
}
