// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"toebox/guestdriver"
)

// TestCarryOverPolicies: connections that go on under new firmware have their own
// policies there, those that they began with, and none that the adapter got since;
// and the adapter has its own.
func TestCarryOverPolicies(t *testing.T) {
	ctx := context.Background()
	c := newCarrier(t, 2)
	echo := echoServer(t)
	dial := func() *guestdriver.Conn {
		nc, err := c.a.Dial("tcp", "10.0.2.2:"+echo)
		return within(t, nc, err)
	}
	type policies struct {
		send     guestdriver.SendPolicy
		receive  guestdriver.ReceivePolicy
		schedule guestdriver.Schedule
		choice   guestdriver.ChoicePolicy
	}
	of := func(c *guestdriver.Conn) (p policies) {
		t.Helper()
		var errs [4]error
		p.send, errs[0] = c.SendPolicy()
		p.receive, errs[1] = c.ReceivePolicy()
		p.schedule, errs[2] = c.Schedule()
		p.choice, errs[3] = c.ChoicePolicy()
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := dial()
	plain := of(first)
	send, receive, schedule, choice := plain.send, plain.receive, plain.schedule, plain.choice
	send.Count, send.Age, send.Keep = 3, 2*time.Millisecond, true
	receive.Bytes, receive.Max, receive.Combine, receive.Gather = 1000, 3*time.Millisecond, true, 0
	schedule.Priority, schedule.Starvation = 5, time.Millisecond
	choice.Choice, choice.Match = guestdriver.ChooseHistory, guestdriver.PoolMatch{Best: true, Node: 3, NodeWeight: 9}
	if err := errors.Join(c.a.SetSendPolicy(ctx, send), c.a.SetReceivePolicy(ctx, receive), c.a.SetSchedule(ctx, schedule), c.a.SetChoicePolicy(ctx, choice)); err != nil {
		t.Fatal(err)
	}
	second, third := dial(), dial()
	schedule.Priority, receive.Dynamic, choice.Wait = 7, guestdriver.NotifyPosts, time.Second
	if err := errors.Join(third.SetSchedule(schedule), third.SetReceivePolicy(receive), third.SetChoicePolicy(choice)); err != nil {
		t.Fatal(err)
	}
	all := []*guestdriver.Conn{first, second, third}
	want := []policies{of(first), of(second), of(third)}
	if want[0] != plain || want[1] == plain || want[2] == want[1] {
		t.Fatalf("before: %+v", want)
	}
	for round := range 2 {
		c.stop(true)
		c.until("all to go on", func() bool { return c.a.Stats().CarriedOver == uint64(len(all)*(round+1)) })
		for i, conn := range all {
			if got := of(conn); got != want[i] {
				t.Errorf("connection %d after stop %d: %+v, want %+v", i, round, got, want[i])
			}
		}
		if p, err := c.a.ReceivePolicy(ctx); err != nil || p != want[1].receive {
			t.Errorf("the adapter's after stop %d: %+v, %v", round, p, err)
		}
	}
	if got := of(dial()); got != want[1] {
		t.Errorf("a new connection: %+v", got)
	}
}
