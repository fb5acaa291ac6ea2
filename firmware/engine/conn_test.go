// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"errors"
	"net/netip"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

func TestConnectAndExchange(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
		to := a.v4
		if v6 {
			to = a.v6
		}
		l := listen(t, a, v6, 80, 16)
		c := connect(t, b, v6, netip.AddrPortFrom(to, 80))
		s := accept(t, l)
		send(t, c, []byte("question"))
		if got := string(receive(t, s, 8)); got != "question" {
			t.Errorf("server read %q", got)
		}
		send(t, s, []byte("answer"))
		if got := string(receive(t, c, 6)); got != "answer" {
			t.Errorf("client read %q", got)
		}
		ci, si := c.Info(), s.Info()
		if ci.Local != si.Remote || ci.Remote != si.Local || ci.Remote != netip.AddrPortFrom(to, 80) {
			t.Errorf("addresses: client %v %v, server %v %v", ci.Local, ci.Remote, si.Local, si.Remote)
		}
		if ci.Queued != 8 || si.Queued != 6 || ci.Delivered != 6 || si.Delivered != 8 || ci.Received != 6 || si.Received != 8 {
			t.Errorf("counts: client %+v, server %+v", ci, si)
		}
		c.ev.until(t, "acknowledgement", func() bool { return c.Info().Acked == 8 })
		if ci.State != engine.StateEstablished || ci.MSS == 0 || ci.Cwnd == 0 {
			t.Errorf("client %+v", ci)
		}
	}
}

func TestRefused(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	c := open(t, b, engine.TCP, false)
	if err := c.Connect(netip.AddrPortFrom(a.v4, 81)); err != nil {
		t.Fatal(err)
	}
	c.ev.until(t, "the refusal", func() bool { return c.ev.seen(engine.EventConnected) })
	for range 2 {
		if err := c.ConnectResult(); !errors.Is(err, engine.ErrRefused) {
			t.Errorf("result %v", err)
		}
		if _, err := c.Read(1, func([]byte) int { return 0 }); !errors.Is(err, engine.ErrRefused) {
			t.Errorf("read %v", err)
		}
		if _, err := c.Write(1, func([]byte) error { return nil }); !errors.Is(err, engine.ErrRefused) {
			t.Errorf("write %v", err)
		}
	}
	if n := c.ev.count(engine.EventConnected); n != 1 {
		t.Errorf("%d connected events", n)
	}
}
