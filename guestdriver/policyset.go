// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"toebox/vdev/abi"
)

// SendPolicy returns the policy of the connection's sends.
func (c *Conn) SendPolicy() (p SendPolicy, err error) {
	err = c.policy(false, p.fields())
	return p, err
}

// SetSendPolicy sets the policy of the connection's sends. An error names each
// [AttributeError] that the adapter refused; what it does not name is set.
func (c *Conn) SetSendPolicy(p SendPolicy) error {
	if err := p.check(&c.lane().a.opts); err != nil {
		return c.opError("set", err)
	}
	return c.policy(true, p.fields())
}

// ReceivePolicy returns the policy of what the connection receives.
func (c *Conn) ReceivePolicy() (p ReceivePolicy, err error) {
	err = c.policy(false, p.fields())
	return p, err
}

// SetReceivePolicy sets the policy of what the connection receives; see
// [Conn.SetSendPolicy] for errors.
func (c *Conn) SetReceivePolicy(p ReceivePolicy) error { return c.policy(true, p.fields()) }

// Schedule returns when the connection's turn comes.
func (c *Conn) Schedule() (p Schedule, err error) {
	err = c.policy(false, p.fields())
	return p, err
}

// SetSchedule sets when the connection's turn comes; see [Conn.SetSendPolicy] for
// errors.
func (c *Conn) SetSchedule(p Schedule) error { return c.policy(true, p.fields()) }

// Placement returns where bytes of the connection are left.
func (c *Conn) Placement() (p Placement, err error) {
	err = c.policy(false, p.fields())
	return p, err
}

// SetPlacement sets where bytes of the connection are left; see
// [Conn.SetSendPolicy] for errors.
func (c *Conn) SetPlacement(p Placement) error { return c.policy(true, p.fields()) }

// SendPolicy returns the policy of connections to come.
func (a *Adapter) SendPolicy(ctx context.Context) (p SendPolicy, err error) {
	err = a.policy(ctx, false, p.fields())
	return p, err
}

// SetSendPolicy sets the policy of connections to come; see [Conn.SetSendPolicy]
// for errors.
func (a *Adapter) SetSendPolicy(ctx context.Context, p SendPolicy) error {
	if err := p.check(&a.opts); err != nil {
		return err
	}
	return a.policy(ctx, true, p.fields())
}

// ReceivePolicy returns the policy of connections to come.
func (a *Adapter) ReceivePolicy(ctx context.Context) (p ReceivePolicy, err error) {
	err = a.policy(ctx, false, p.fields())
	return p, err
}

// SetReceivePolicy sets the policy of connections to come; see
// [Conn.SetSendPolicy] for errors.
func (a *Adapter) SetReceivePolicy(ctx context.Context, p ReceivePolicy) error {
	return a.policy(ctx, true, p.fields())
}

// Schedule returns when the turn of connections to come is.
func (a *Adapter) Schedule(ctx context.Context) (p Schedule, err error) {
	err = a.policy(ctx, false, p.fields())
	return p, err
}

// SetSchedule sets when the turn of connections to come is; see
// [Conn.SetSendPolicy] for errors.
func (a *Adapter) SetSchedule(ctx context.Context, p Schedule) error {
	return a.policy(ctx, true, p.fields())
}

// Placement returns where bytes of connections to come are left.
func (a *Adapter) Placement(ctx context.Context) (p Placement, err error) {
	err = a.policy(ctx, false, p.fields())
	return p, err
}

// SetPlacement sets where bytes of connections to come are left; see
// [Conn.SetSendPolicy] for errors.
func (a *Adapter) SetPlacement(ctx context.Context, p Placement) error {
	return a.policy(ctx, true, p.fields())
}

// settings are attributes by their ids. Those of an adapter and of what began
// under it are not changed, but replaced.
type settings map[abi.Attribute]uint64

// policy gets or sets the attributes of a connection that a policy is made of.
func (c *Conn) policy(set bool, fields []field) error {
	op := "get"
	if set {
		op = "set"
	}
	if c.isClosed() {
		return c.opError(op, errClosed)
	}
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	for {
		ln, id, err := c.awaitCarried(ctx)
		if err == nil {
			err = ln.policy(ctx, id, set, fields, c.note)
		}
		if at, now, aerr := c.awaitCarried(ctx); aerr == nil && (now != id || at != ln) {
			continue // it was carried over meanwhile, perhaps without this
		}
		return c.opError(op, err)
	}
}

// policy gets or sets the defaults that a policy is made of.
func (a *Adapter) policy(ctx context.Context, set bool, fields []field) error {
	return a.lanes[0].policy(ctx, 0, set, fields, func(attr abi.Attribute, v uint64) {
		a.mu.Lock()
		defer a.mu.Unlock()
		next := settings{attr: v}
		if old := a.defaults.Load(); old != nil {
			for k, w := range *old {
				if k != attr {
					next[k] = w
				}
			}
		}
		a.defaults.Store(&next)
	})
}

// policy gets or sets the attributes of a connection, or the defaults, by one
// request. Those that were set are noted.
func (ln *lane) policy(ctx context.Context, conn uint64, set bool, fields []field, note func(abi.Attribute, uint64)) error {
	all := make([]scalarAttr, len(fields))
	var refused []error
	for i, f := range fields {
		v, ok := f.value()
		if set && !ok {
			refused = append(refused, fmt.Errorf("value %d: %w", int64(v), &AttributeError{"set", f.attr, abi.StatusBadValue}))
		}
		all[i] = scalarAttr{f.attr, v}
	}
	if refused != nil {
		return errors.Join(refused...) // and nothing is set
	}
	results, err := ln.scalars(ctx, conn, set, all)
	if err != nil {
		return err
	}
	for i, r := range results {
		switch {
		case set && r.status != abi.StatusOK:
			refused = append(refused, fmt.Errorf("value %d: %w", all[i].value, &AttributeError{"set", r.attr, r.status}))
		case set:
			note(r.attr, all[i].value)
		case r.status != abi.StatusOK:
			refused = append(refused, &AttributeError{"get", r.attr, r.status})
		case !fields[i].put(r.value):
			refused = append(refused, fmt.Errorf("value %d: %w", r.value, &AttributeError{"get", r.attr, abi.StatusBadValue}))
		}
	}
	return errors.Join(refused...)
}

// scalarResult is what became of a tuple: the value is what a get gave, or what
// there was before a set.
type scalarResult struct {
	scalarAttr
	status abi.Status
}

// scalars runs one attribute control with a tuple for each attribute, a set or a
// get of a number.
func (ln *lane) scalars(ctx context.Context, conn uint64, set bool, all []scalarAttr) ([]scalarResult, error) {
	var tuples []byte
	for _, s := range all {
		if set {
			tuples = abi.AppendSetScalar(tuples, s.attr, s.value)
		} else {
			tuples = abi.AppendGet(tuples, s.attr, scalarSize)
		}
	}
	buf, err := ln.a.controlBuffer(len(tuples))
	if err != nil {
		return nil, err
	}
	copy(buf.data, tuples)
	res, err := ln.control(ctx, request{kind: kindAttribute, call: newCall(), buf: buf}, abi.Fields{
		Type: abi.TypeConnectionAttr, Aux: uint16(len(all)), Conn: conn, Base: buf.iova, Length: uint32(len(tuples)),
	})
	if err != nil {
		return nil, err
	}
	// One copy, then the copy is judged.
	got := append([]byte(nil), buf.data[:len(tuples)]...)
	ln.a.ctl.release(buf)
	whole := abi.Status(res.fields.Aux)
	results := make([]scalarResult, len(all))
	for i := range results {
		t := got[i*(abi.TupleHeaderSize+scalarSize):]
		r := scalarResult{scalarAttr: scalarAttr{attr: all[i].attr}, status: whole}
		if whole == abi.StatusOK || whole == abi.StatusPartial {
			var n uint32
			if r.status, n = abi.TupleResult(t); r.status == abi.StatusOK && n != scalarSize {
				ln.a.bad.length.Add(1)
				r.status = abi.StatusBadLength
			}
		}
		r.value = binary.LittleEndian.Uint64(t[abi.TupleHeaderSize:])
		results[i] = r
	}
	return results, nil
}

// scalarSize is the length of a number in a tuple.
const scalarSize = 8

// putDefaults gives an adapter that was reset the policies that it had. What new
// firmware refuses stays as the firmware has it.
func (a *Adapter) putDefaults() error {
	d := a.defaults.Load()
	if d == nil {
		return nil
	}
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	_, err := a.lanes[0].scalars(ctx, 0, true, d.list())
	return err
}

// list returns the settings in order.
func (s settings) list() (all []scalarAttr) {
	for _, attr := range slices.Sorted(maps.Keys(s)) {
		all = append(all, scalarAttr{attr, s[attr]})
	}
	return all
}

// over returns the settings of something that began under s, with what was set
// since, on an adapter whose defaults are others.
func (s *settings) over(defaults *settings, since settings) settings {
	all := settings{}
	if defaults != nil && defaults != s {
		for _, info := range abi.Attributes() {
			if _, other := (*defaults)[info.ID]; other {
				all[info.ID] = info.Default
			}
		}
	}
	if s != nil {
		maps.Copy(all, *s)
	}
	maps.Copy(all, since)
	return all
}
