// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"toebox/vfio-user/keeper"
)

// nobody is told that a load waits.
func nobody() {}

// client is a toebox process that loads a program.
type client struct {
	waits chan struct{}
	ended chan error
	got   Loaded // with ended
}

func load(ctx context.Context, r Record, program string) *client {
	c := &client{waits: make(chan struct{}, 1), ended: make(chan error, 1)}
	go func() {
		var err error
		c.got, err = SendLoad(ctx, r, Load{Program: program, Name: program}, func() { c.waits <- struct{}{} })
		c.ended <- err
	}()
	return c
}

func wait[T any](t *testing.T, what string, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(reloadPatience):
		t.Fatalf("%s: nothing comes", what)
	}
	return v
}

// TestLoadsInTurn: of loads at once each waits for those before, and gets the answer to
// its own; the turn of one that has gone passes.
func TestLoadsInTurn(t *testing.T) {
	p := testPaths(t)
	f, err := newRun(p, time.Now(), 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	k, its, _ := fakeKeeper(t)
	l, err := newLoader(&Instance{Record: f.Record, Dir: f.dir, devices: []*device{{kept: k}}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	orders, answers := json.NewDecoder(its), json.NewEncoder(its)
	var programs []string
	for range 4 {
		program, err := NewFirmware(p, f.Record)
		if err == nil {
			err = os.WriteFile(program, nil, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		programs = append(programs, program)
	}
	ordered := func(n int) {
		t.Helper()
		var o keeper.Order
		if err := orders.Decode(&o); err != nil || o.Server[0] != programs[n] {
			t.Fatalf("order %q, %v; want load %d", o.Server, err, n)
		}
	}
	first := load(t.Context(), f.Record, programs[0])
	ordered(0)
	second := load(t.Context(), f.Record, programs[1])
	wait(t, "the second", second.waits)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("Ctrl-C")
	third := load(ctx, f.Record, programs[2])
	wait(t, "the third", third.waits)
	cancel(why)
	if err := wait(t, "the third", third.ended); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	for deadline := time.Now().Add(reloadPatience); len(l.slots) > 2; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a client that has gone is waited for")
		}
	}
	fourth := load(t.Context(), f.Record, programs[3])
	wait(t, "the fourth", fourth.waits)
	left := map[int]*client{1: second, 3: fourth}
	answers.Encode(keeper.Report{Kind: keeper.KindReplaced, Generation: 10})
	if err := wait(t, "the first", first.ended); err != nil || first.got.Generation != 10 || first.got.Error != "" {
		t.Errorf("first: %+v, %v", first.got, err)
	}
	for generation := uint32(11); len(left) > 0; generation++ {
		// Which of those that wait is next is nobody's concern.
		var o keeper.Order
		if err := orders.Decode(&o); err != nil {
			t.Fatal(err)
		}
		n := 1
		if o.Server[0] == programs[3] {
			n = 3
		}
		c := left[n]
		if c == nil || o.Server[0] != programs[n] {
			t.Fatalf("order %q", o.Server)
		}
		delete(left, n)
		answers.Encode(keeper.Report{Kind: keeper.KindReplaced, Generation: generation, Error: fmt.Sprint("no ", n)})
		if err := wait(t, "the answer", c.ended); err != nil || c.got.Generation != generation || !strings.Contains(c.got.Error, fmt.Sprint("no ", n)) {
			t.Errorf("load %d: %+v, %v", n, c.got, err)
		}
	}
	if len(third.waits)+len(first.waits) != 0 {
		t.Error("told to wait twice, or without need")
	}
}

// TestTurn: who waits for a turn gives up with its context, and when the keeper ends.
func TestTurn(t *testing.T) {
	k, its, _ := fakeKeeper(t)
	if err := k.take(t.Context(), func() { t.Error("waits for nobody") }); err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	if err := k.take(ctx, func() { cancel(why) }); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	if err := k.take(t.Context(), func() { its.Close() }); !errors.Is(err, ErrDevice) {
		t.Errorf("without a keeper: %v", err)
	}
	k.release()
	if err := k.take(t.Context(), func() { t.Error("nobody has the turn") }); err != nil {
		t.Error(err)
	}
}

// TestLateAnswer: the answer to an order that was given up is not taken for that to
// the next.
func TestLateAnswer(t *testing.T) {
	k, its, _ := fakeKeeper(t)
	orders, answers := json.NewDecoder(its), json.NewEncoder(its)
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	got := make(chan error, 1)
	go func() {
		_, err := k.replace(ctx, "/r/firmware-1/p")
		got <- err
	}()
	var o keeper.Order
	if err := orders.Decode(&o); err != nil {
		t.Fatal(err)
	}
	cancel(why)
	if err := wait(t, "the first", got); !errors.Is(err, why) {
		t.Errorf("given up: %v", err)
	}
	for n, late := range []bool{true, false, false} {
		r := make(chan keeper.Report, 1)
		go func() {
			a, err := k.replace(t.Context(), "/r/firmware-2/p")
			if err != nil {
				t.Error(err)
			}
			r <- a
		}()
		if err := orders.Decode(&o); err != nil {
			t.Fatal(err)
		}
		if late {
			answers.Encode(keeper.Report{Kind: keeper.KindReplaced, Generation: 1, Error: "the first"})
		}
		answers.Encode(keeper.Report{Kind: keeper.KindReplaced, Generation: uint32(n + 2)})
		if a := wait(t, "the answer", r); a.Generation != uint32(n+2) {
			t.Errorf("order %d: %+v", n, a)
		}
	}
}

// deadlines is a connection that keeps the deadlines of its reads.
type deadlines struct {
	net.Conn
	set []time.Time
}

func (d *deadlines) SetReadDeadline(at time.Time) error {
	d.set = append(d.set, at)
	return d.Conn.SetReadDeadline(at)
}

// TestLoadLimits: what the wait for the turn takes is not taken from the wait for the
// answer, and a run that only ever tells of states is not listened to for ever.
func TestLoadLimits(t *testing.T) {
	const turn, order = 10 * time.Minute, 90 * time.Second
	for _, test := range []struct {
		lines  string
		limits []time.Duration
		fails  string
	}{
		{`{"generation":7}` + "\n", []time.Duration{order}, ""},
		{`{"state":"begins"}` + "\n" + `{"generation":7}` + "\n", []time.Duration{order, order}, ""},
		{`{"state":"waits"}` + "\n" + `{"state":"begins"}` + "\n" + `{"generation":7}` + "\n", []time.Duration{order, turn, order}, ""},
		{strings.Repeat(`{"state":"waits"}`+"\n", 9), []time.Duration{order, turn, turn}, "no answer"},
		{`{"state":"waits"}` + "\n", []time.Duration{order, turn}, "EOF"},
		{"no JSON\n", []time.Duration{order}, "invalid"},
		{strings.Repeat("x", maxReport+1), []time.Duration{order}, "buffer full"},
	} {
		a, b := net.Pipe()
		go func() {
			io.WriteString(b, test.lines)
			b.Close()
		}()
		d := &deadlines{Conn: a}
		begin := time.Now()
		got, err := awaitLoaded(d, nobody)
		took := time.Since(begin)
		a.Close()
		if test.fails == "" && (err != nil || got.Generation != 7) || test.fails != "" && (err == nil || !strings.Contains(err.Error(), test.fails)) {
			t.Errorf("%.60q: %+v, %v", test.lines, got, err)
		}
		if len(d.set) != len(test.limits) {
			t.Fatalf("%.60q: %d deadlines", test.lines, len(d.set))
		}
		for n, at := range d.set {
			if in := at.Sub(begin); in < test.limits[n] || in > test.limits[n]+took+time.Minute {
				t.Errorf("%.60q: limit %d is %v, want %v", test.lines, n, in, test.limits[n])
			}
		}
	}
}
