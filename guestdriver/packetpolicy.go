// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"toebox/vdev/abi"
)

// Of the policies of connections datagram endpoints have those below (SPEC.md
// §5.11): the others are of streams. They hold for all ends of a PacketConn, which has
// what the adapter's were when it was opened until they are set, and keeps them over
// a reset with Options.CarryOver.

// SendPolicy returns the policy of datagrams that are sent.
func (p *PacketConn) SendPolicy() (s SendPolicy, err error) {
	err = p.policy(false, s.packetFields())
	return s, err
}

// SetSendPolicy sets the policy of datagrams that are sent. Their completion point is
// that they were handed to the network, whatever is said of streams: Complete stays 0.
// See [Conn.SetSendPolicy] for errors.
func (p *PacketConn) SetSendPolicy(s SendPolicy) error {
	if s.Complete != 0 {
		return p.setError(fmt.Errorf("completion point of datagrams: %w", &AttributeError{"set", abi.AttrCompletionPoint, abi.StatusNotSupported}))
	}
	return p.policy(true, s.packetFields())
}

func (p *SendPolicy) packetFields() []field {
	return slices.DeleteFunc(p.fields(), func(f field) bool { return f.attr == abi.AttrCompletionPoint })
}

// Schedule returns when the turn of datagrams comes.
func (p *PacketConn) Schedule() (s Schedule, err error) {
	err = p.policy(false, s.fields())
	return s, err
}

// SetSchedule sets when the turn of datagrams comes; see [Conn.SetSendPolicy] for
// errors.
func (p *PacketConn) SetSchedule(s Schedule) error { return p.policy(true, s.fields()) }

// Placement returns where datagrams are left that are received.
func (p *PacketConn) Placement() (s Placement, err error) {
	err = p.policy(false, s.fields())
	return s, err
}

// SetPlacement sets where datagrams are left that are received; see
// [Conn.SetSendPolicy] for errors.
func (p *PacketConn) SetPlacement(s Placement) error { return p.policy(true, s.fields()) }

// Expedited reports whether datagrams that are received go before what other
// endpoints and connections do.
func (p *PacketConn) Expedited() (on bool, err error) {
	err = p.policy(false, []field{{abi.AttrExpedited, &on}})
	return on, err
}

// SetExpedited sets whether datagrams that are received go first (RX06). Datagrams
// wait for no others: of [ReceivePolicy] this is all.
func (p *PacketConn) SetExpedited(on bool) error {
	return p.policy(true, []field{{abi.AttrExpedited, &on}})
}

// policy gets the attributes of the first end, or sets those of all of them.
func (p *PacketConn) policy(set bool, fields []field) error {
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	for {
		ends, err := p.settled()
		if err != nil {
			return p.setError(err)
		}
		err = p.policyOn(ctx, ends, set, fields)
		if p.stillThere(ends, err) {
			return p.setError(err)
		}
	}
}

// settled waits until no end is being opened again, and returns all of them.
func (p *PacketConn) settled() ([]*packetEnd, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && p.err == nil && p.betweenLocked() {
		p.wcond.Wait()
	}
	if p.closed {
		return nil, errClosed
	}
	return slices.Clone(p.ends), p.err
}

// policyOn gets or sets attributes of ends. What all of them have taken is noted.
func (p *PacketConn) policyOn(ctx context.Context, ends []*packetEnd, set bool, fields []field) error {
	taken := map[abi.Attribute]int{}
	var errs []error
	for _, e := range ends {
		errs = append(errs, e.ln.policy(ctx, e.id, set, fields, func(attr abi.Attribute, v uint64) {
			if taken[attr]++; taken[attr] == len(ends) {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.noteLocked(packetSetting{attr, scalarBytes(v), netip.Addr{}})
			}
		}))
		if !set {
			break
		}
	}
	return errors.Join(errs...)
}

// stillThere reports whether the ends were there to the end of a call, which gave
// err. An end that is about to be lost is waited for.
func (p *PacketConn) stillThere(ends []*packetEnd, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	lost := errors.Is(err, ErrReset) || errors.Is(err, ErrGone)
	for _, e := range ends {
		for lost && e.ln.a.opts.CarryOver && !e.isGone && !p.closed && p.err == nil {
			p.wcond.Wait()
		}
		if e.isGone && !p.closed && p.err == nil {
			return false
		}
	}
	return true
}
