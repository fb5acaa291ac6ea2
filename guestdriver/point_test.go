// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// TestCompletionPoint: a completion says how far the bytes are, as its response does.
func TestCompletionPoint(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	g := newAudience(t, a, 2)
	c, q := g.conns[0], guestdriver.NewCompletionQueue()
	b := part(t, region(t, a, 1000), 0, 1000)
	send := func() guestdriver.Completion {
		t.Helper()
		if err := c.SendBuffer(b, q); err != nil {
			t.Fatal(err)
		}
		return next(t, q)
	}
	point := func(p guestdriver.CompletionPoint) {
		t.Helper()
		s, err := c.SendPolicy()
		if s.Complete = p; err != nil {
			t.Fatal(err)
		}
		if err := c.SetSendPolicy(s); err != nil {
			t.Fatal(err)
		}
		if got, err := c.SendPolicy(); err != nil || got != s {
			t.Errorf("policy %+v, %v, want %+v", got, err, s)
		}
	}
	for _, p := range []guestdriver.CompletionPoint{guestdriver.PointAcknowledged, guestdriver.PointHanded, guestdriver.PointRead} {
		point(p)
		if d := send(); d != (guestdriver.Completion{Buffer: b, Conn: c, Op: guestdriver.OpSend, N: 1000, Point: p, Final: true}) {
			t.Errorf("%d: %+v", p, d)
		}
	}
	if err := g.Send(b, g.q); err != nil {
		t.Fatal(err)
	}
	all := g.results(t, b, 2)
	if near, far := all[c], all[g.conns[1]]; near.Point != guestdriver.PointRead || far.Point != guestdriver.PointAcknowledged || near.N+far.N != 2000 {
		t.Errorf("a broadcast: %+v, %+v", near, far)
	}

	// Bits 1..0 of byte 0 are at most 2.
	f.Intercept(func(queue int, r abi.Fields) bool {
		if r.Type != abi.TypeBufferSend {
			return false
		}
		go func() {
			d := abi.Fields{Type: 17, Flags: 1, Tag: r.Tag, Base: r.Base, Conn: r.Conn, Length: 1000, ASAP: true, Modify: true}
			f.Inject(queue, d)
			d.ASAP = false
			f.Inject(queue, d)
		}()
		return true
	})
	if d := send(); d.Point != guestdriver.PointHanded || d.Err != nil || a.Stats().BadTypes != 1 {
		t.Errorf("%+v, %d responses dropped", d, a.Stats().BadTypes)
	}
}

// TestCompletionPointRefused: points that are none, and those that do not go with
// Options.CarryOver, do not get to the adapter.
func TestCompletionPointRefused(t *testing.T) {
	for _, k := range []struct {
		carry  bool
		p      guestdriver.CompletionPoint
		status abi.Status
		says   string
	}{
		{false, guestdriver.PointRead + 1, abi.StatusBadValue, "value 3"},
		{true, guestdriver.PointRead, abi.StatusNotSupported, "CarryOver"},
		{true, guestdriver.PointHanded, abi.StatusNotSupported, "CarryOver"},
	} {
		a, f := open(t, guestdriver.Options{CarryOver: k.carry})
		c, far := pair(t, a)
		defer c.Close()
		defer far.Close()
		seen := controls(f)
		p := sendPolicy
		p.Complete = k.p
		for _, err := range []error{c.SetSendPolicy(p), a.SetSendPolicy(context.Background(), p)} {
			var at *guestdriver.AttributeError
			if !errors.Is(err, k.status) || !errors.As(err, &at) || at.Attr != 0x0215 || !strings.Contains(err.Error(), k.says) {
				t.Errorf("point %d: %v", k.p, err)
			}
		}
		if len(seen) != 0 {
			t.Errorf("the adapter was asked: % x", <-seen)
		}
		f.Intercept(nil)
		p.Complete = guestdriver.PointAcknowledged
		if err := c.SetSendPolicy(p); err != nil {
			t.Errorf("acknowledged: %v", err)
		}
	}
}
