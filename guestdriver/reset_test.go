// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

// echo shows that the adapter works.
func echo(t *testing.T, a *guestdriver.Adapter) {
	t.Helper()
	c, err := a.Dial("tcp", "10.0.2.2:7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
		t.Fatalf("%q, %v", buf, err)
	}
}

// outstanding starts one of everything that waits and returns where the errors
// come.
func outstanding(t *testing.T, a *guestdriver.Adapter, f *guestdrivertest.Fake) (errs map[string]chan error, end func()) {
	t.Helper()
	l, err := a.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	c, err := a.Dial("tcp", "10.0.2.15:"+port)
	if err != nil {
		t.Fatal(err)
	}
	errs = map[string]chan error{}
	start := func(name string, fn func() error) {
		ch := make(chan error, 1)
		errs[name] = ch
		go func() { ch <- fn() }()
	}
	start("read", func() error { _, err := c.Read(make([]byte, 1)); return err })
	start("write", func() error { _, err := c.Write(make([]byte, 8<<20)); return err })
	dialed, asked := make(chan struct{}), make(chan struct{})
	f.Intercept(func(_ int, r abi.Fields) bool {
		switch r.Type {
		case abi.TypeConnect:
			close(dialed)
		case abi.TypeAdapterAttr:
			close(asked)
		}
		return r.Type == abi.TypeAdapterAttr
	})
	start("dial", func() error { _, err := a.Dial("tcp", "10.0.2.2:99"); return err })
	start("attribute", func() error { _, err := a.Counters(context.Background()); return err })
	for name, ch := range map[string]chan struct{}{"connect": dialed, "attribute request": asked} {
		select {
		case <-ch:
		case <-time.After(limit):
			t.Fatalf("the adapter gets no %s", name)
		}
	}
	waitFor(t, "the writer to fill the adapter", func() bool { return a.Stats().Memory >= 512<<10 })
	f.Intercept(nil)
	return errs, func() { c.Close(); l.Close() }
}

func checkAll(t *testing.T, errs map[string]chan error, want error) {
	t.Helper()
	for name, ch := range errs {
		select {
		case err := <-ch:
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		case <-time.After(limit):
			t.Errorf("%s hangs", name)
		}
	}
}

// TestFirmwareReset: everything outstanding ends once with ErrReset, then the
// adapter works again and listeners are open. Nobody watches: the interrupt of
// vector 0 must do.
func TestFirmwareReset(t *testing.T) {
	a, f := open(t, guestdriver.Options{Queues: 2, Watch: -1})
	for round := range 4 {
		errs, end := outstanding(t, a, f)
		l, err := a.Listen("tcp", ":9090")
		if err != nil {
			t.Fatal(err)
		}
		if round%2 == 0 {
			f.Restart()
		} else if err := f.Reset(); err != nil { // of the same firmware
			t.Fatal(err)
		}
		checkAll(t, errs, guestdriver.ErrReset)
		echo(t, a)
		waitFor(t, "the listener to be open again", func() bool {
			c, err := a.Dial("tcp", "10.0.2.15:9090")
			if err == nil {
				c.Close()
			}
			return err == nil
		})
		if c, err := l.Accept(); err != nil {
			t.Errorf("round %d: accept: %v", round, err)
		} else {
			c.Close()
		}
		l.Close()
		end()
		if n := a.Stats().Resets; n != uint64(round+1) {
			t.Errorf("round %d: %d resets", round, n)
		}
	}
	waitFor(t, "the memory", func() bool { return a.Stats().Memory == 0 })
}

// TestRestartFails: an adapter that could not be started again is tried again.
func TestRestartFails(t *testing.T) {
	a, f := open(t, guestdriver.Options{Watch: 2 * time.Millisecond})
	l, err := a.Listen("tcp", ":9090")
	if err != nil {
		t.Fatal(err)
	}
	f.Refuse(true)
	if err := f.Reset(); err != nil { // of the same firmware
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, abi.StatusBadMemory) {
		t.Errorf("accept: %v", err)
	}
	if _, err := a.Dial("tcp", "10.0.2.2:7"); !errors.Is(err, abi.StatusBadMemory) {
		t.Errorf("dial: %v", err)
	}
	f.Refuse(false)
	waitFor(t, "the adapter to be there again", func() bool {
		_, err := a.Counters(context.Background())
		return err == nil
	})
	echo(t, a)
}

// TestResetWhileListening: a reset that ends the opening of a listener again
// does not end the listener.
func TestResetWhileListening(t *testing.T) {
	a, f := open(t, guestdriver.Options{Watch: -1})
	l, err := a.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := l.Addr().String()
	asked := make(chan struct{}, 16)
	f.Intercept(func(_ int, r abi.Fields) bool {
		if r.Type == abi.TypeListen {
			asked <- struct{}{}
		}
		return r.Type == abi.TypeListen
	})
	f.Restart()
	wait := func() {
		t.Helper()
		select {
		case <-asked:
		case <-time.After(limit):
			t.Fatal("the listener is not opened again")
		}
	}
	for range 3 {
		wait()
		if got := l.Addr().String(); got != at {
			t.Errorf("address %s, was %s", got, at)
		}
		f.Restart()
	}
	wait()
	f.Intercept(nil)
	f.Restart()
	_, port, _ := net.SplitHostPort(at)
	waitFor(t, "the listener to be open again", func() bool {
		c, err := a.Dial("tcp", "10.0.2.15:"+port)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	if c, err := l.Accept(); err != nil {
		t.Errorf("accept: %v", err)
	} else {
		c.Close()
	}
}

func TestAdapterGone(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	errs, end := outstanding(t, a, f)
	defer end()
	l, err := a.Listen("tcp", ":9090")
	if err != nil {
		t.Fatal(err)
	}
	f.Kill()
	checkAll(t, errs, guestdriver.ErrGone)
	if _, err := l.Accept(); !errors.Is(err, guestdriver.ErrGone) {
		t.Errorf("accept: %v", err)
	}
	if _, err := a.Dial("tcp", "10.0.2.2:7"); !errors.Is(err, guestdriver.ErrGone) {
		t.Errorf("dial: %v", err)
	}
	if _, err := a.Listen("tcp", ":1"); !errors.Is(err, guestdriver.ErrGone) {
		t.Errorf("listen: %v", err)
	}
}

func TestClose(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	errs, end := outstanding(t, a, f)
	defer end()
	l, err := a.Listen("tcp", ":9090")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	checkAll(t, errs, net.ErrClosed)
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	if _, err := a.Dial("tcp", "10.0.2.2:7"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial: %v", err)
	}
	if _, err := a.Listen("tcp", ":9091"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listen: %v", err)
	}
	if _, err := a.Counters(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("counters: %v", err)
	}
	if cmd, _ := f.ReadConfig(4, 2); cmd&4 != 0 {
		t.Error("bus master is still on")
	}
}

// TestCloseBothEnds: what waits on connections of the adapter with itself hears
// that it was closed, and not of the other end.
func TestCloseBothEnds(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	errs := map[string]chan error{}
	for i := range 256 {
		c, s := pair(t, a)
		for name, end := range map[string]net.Conn{"client": c, "server": s} {
			ch := make(chan error, 1)
			errs[fmt.Sprint(name, i)] = ch
			go func() {
				_, err := end.Read(make([]byte, 1))
				ch <- err
			}()
		}
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	checkAll(t, errs, net.ErrClosed)
}

// TestLostInterrupts: the watch finds what no interrupt told of.
func TestLostInterrupts(t *testing.T) {
	a, f := open(t, guestdriver.Options{Watch: 2 * time.Millisecond})
	f.Mute(true)
	echo(t, a)
	loseInterrupt(t, a, f)
	f.Restart() // nobody is told of the reset either
	waitFor(t, "the reset to be noticed", func() bool { return a.Stats().Resets == 1 })
	echo(t, a)
}

// TestRoom: writers wait for room in the table, under their deadlines.
func TestRoom(t *testing.T) {
	a, f := open(t, guestdriver.Options{InLog2: 4, OutLog2: 4, Watch: -1})
	c, s := pair(t, a)
	defer s.Close()
	defer c.Close()
	if _, err := a.Counters(context.Background()); err != nil { // all before it is taken
		t.Fatal(err)
	}
	f.Pause(0, true)
	before := a.Stats().Requests
	total := 0
	full := make(chan error)
	go func() {
		for {
			n, err := c.Write([]byte("twenty bytes of text"))
			total += n
			if err != nil {
				full <- err
				return
			}
		}
	}()
	waitFor(t, "the table to be full", func() bool { return a.Stats().Requests-before == 16 })
	c.SetWriteDeadline(time.Unix(1, 0))
	err := <-full
	if !errors.Is(err, os.ErrDeadlineExceeded) || total != 16*20 {
		t.Fatalf("%d bytes, %v", total, err)
	}
	c.SetWriteDeadline(time.Time{})
	done := make(chan error, 1)
	go func() {
		for range 100 {
			if _, err := c.Write([]byte("twenty bytes of text")); err != nil {
				done <- err
				return
			}
		}
		done <- c.CloseWrite()
	}()
	f.Pause(0, false)
	got, err := io.ReadAll(s)
	if err != nil || len(got) != total+2000 {
		t.Errorf("%d bytes, %v, want %d", len(got), err, total+2000)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSetMode(t *testing.T) {
	a, _ := open(t, guestdriver.Options{})
	for _, m := range []guestdriver.Mode{guestdriver.ModePoll, guestdriver.ModeHybrid, guestdriver.ModeInterrupt, guestdriver.ModePoll} {
		a.SetMode(m, 0)
		echo(t, a)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(f *guestdrivertest.Fake)
		want  string
	}{
		"other function": {func(f *guestdrivertest.Fake) { f.SetConfig(2, 0x11) }, "not an adapter"},
		"other ID":       {func(f *guestdrivertest.Fake) { f.SetRegister(0x0000, 1) }, "ID register"},
		"other major":    {func(f *guestdrivertest.Fake) { f.SetRegister(0x0004, 0x00020000) }, "programming interface 2.0"},
		"one queue":      {func(f *guestdrivertest.Fake) { f.SetRegister(0x000c, 0x10042101) }, "1 queues"},
		"two vectors":    {func(f *guestdrivertest.Fake) { f.SetRegister(0x000c, 0x10040220) }, "2 vectors"},
		"gone":           {func(f *guestdrivertest.Fake) { f.Kill() }, "ID register"},
		"failed":         {func(f *guestdrivertest.Fake) { f.SetRegister(0x0014, 8) }, "wait until ready"},
	} {
		f := guestdrivertest.New()
		c.spoil(f)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		a, err := guestdriver.Open(ctx, f, guestdriver.Options{Queues: 2})
		if err == nil {
			a.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		cancel()
		f.Close()
	}
}
