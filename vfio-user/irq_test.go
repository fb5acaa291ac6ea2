// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// TestSetIRQs goes through the forms of SET_IRQS that must be refused, and a
// few that must not.
func TestSetIRQs(t *testing.T) {
	const EINVAL, ENOTTY = 22, 25
	cfg := vfiousertest.Config()
	cfg.IRQs[vfiouser.IRQMSI] = vfiouser.IRQ{Count: 1}
	_, conn := vfiousertest.Serve(t, vfiousertest.NewDevice(cfg), cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	e := vfiousertest.NewEventFD(t).FD()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, tt := range []struct {
		name                       string
		flags, index, start, count uint32
		data                       []byte
		fds                        []int
		errno                      uint32
	}{
		{"eventfd", 0x24, 2, 0, 2, nil, []int{e, e}, 0},
		{"one more, as vectors are added", 0x24, 2, 2, 1, nil, []int{e}, 0},
		{"last vector", 0x24, 2, 31, 1, nil, []int{e}, 0},
		{"one past the last", 0x24, 2, 32, 1, nil, []int{e}, EINVAL},
		{"range past the last", 0x24, 2, 31, 2, nil, []int{e, e}, EINVAL},
		{"range wraps", 0x24, 2, 0xffffffff, 2, nil, []int{e, e}, EINVAL},
		{"count wraps", 0x24, 2, 2, 0xffffffff, nil, []int{e, e}, EINVAL},
		{"more vectors than files", 0x24, 2, 0, 3, nil, []int{e, e}, EINVAL},
		{"more files than vectors", 0x24, 2, 0, 1, nil, []int{e, e}, EINVAL},
		{"not an eventfd", 0x24, 2, 0, 2, nil, []int{e, int(w.Fd())}, EINVAL},
		{"take away", 0x24, 2, 0, 2, nil, nil, 0},
		{"take away what is not there", 0x24, 2, 7, 3, nil, nil, 0},
		{"no such index", 0x24, 5, 0, 1, nil, []int{e}, EINVAL},
		{"index without vectors", 0x24, 4, 0, 1, nil, []int{e}, EINVAL},
		{"index without vectors, disabled", 0x21, 4, 0, 0, nil, nil, 0},
		{"index that takes none", 0x24, 1, 0, 1, nil, []int{e}, EINVAL},
		{"ERR", 0x24, 3, 0, 1, nil, []int{e}, 0},
		{"no data type", 0x20, 2, 0, 1, nil, nil, EINVAL},
		{"two data types", 0x23, 2, 0, 1, []byte{1}, nil, EINVAL},
		{"no action", 0x01, 2, 0, 1, nil, nil, EINVAL},
		{"two actions", 0x31, 2, 0, 1, nil, nil, EINVAL},
		{"unknown flag", 0x61, 2, 0, 1, nil, nil, EINVAL},
		{"files with none", 0x21, 2, 0, 1, nil, []int{e}, EINVAL},
		{"files with bool", 0x22, 2, 0, 1, []byte{1}, []int{e}, EINVAL},
		{"trigger", 0x21, 2, 0, 32, nil, nil, 0},
		{"trigger by bool", 0x22, 2, 0, 2, []byte{1, 0}, nil, 0},
		{"bools missing", 0x22, 2, 0, 3, []byte{1, 0}, nil, EINVAL},
		{"count 0 eventfd", 0x24, 2, 0, 0, nil, nil, EINVAL},
		{"count 0 bool", 0x22, 2, 0, 0, nil, nil, EINVAL},
		{"count 0 mask", 0x09, 0, 0, 0, nil, nil, EINVAL},
		{"mask what has no mask", 0x09, 2, 0, 1, nil, nil, ENOTTY},
		{"unmask what has no mask", 0x11, 2, 0, 1, nil, nil, ENOTTY},
		{"mask INTx", 0x09, 0, 0, 1, nil, nil, 0},
		{"mask INTx by bool", 0x0a, 0, 0, 1, []byte{1}, nil, 0},
		{"unmask INTx", 0x11, 0, 0, 1, nil, nil, 0},
		{"mask INTx by eventfd", 0x0c, 0, 0, 1, nil, []int{e}, ENOTTY},
		{"resample eventfd", 0x14, 0, 0, 1, nil, []int{e}, 0},
		{"another resample eventfd", 0x14, 0, 0, 1, nil, []int{e}, 0},
		{"no resample eventfd", 0x14, 0, 0, 1, nil, nil, 0},
		{"resample by a pipe", 0x14, 0, 0, 1, nil, []int{int(r.Fd())}, EINVAL},
		{"resample MSI-X", 0x14, 2, 0, 1, nil, []int{e}, ENOTTY},
		{"disable", 0x21, 2, 0, 0, nil, nil, 0},
	} {
		got := p.Do(irqs(1, tt.flags, tt.index, tt.start, tt.count, tt.data...), tt.fds...)
		if got.Errno != tt.errno {
			t.Errorf("%s: errno %v, want %v", tt.name, syscall.Errno(got.Errno), syscall.Errno(tt.errno))
		}
	}
	for _, payload := range []string{"", "14000000 24000000 02000000 00000000", "13000000 21000000 02000000 00000000 01000000"} {
		expect(t, p.Do(vfiousertest.Message{ID: 1, Command: 8, Payload: unhex(t, payload)}), EINVAL)
	}
}

// TestTrigger signals vectors while their eventfds come and go.
func TestTrigger(t *testing.T) {
	cfg := vfiousertest.Config()
	srv, c := vfiousertest.Start(t, vfiousertest.NewDevice(cfg), cfg, vfiouser.ClientConfig{})
	a, b := vfiousertest.NewEventFD(t), vfiousertest.NewEventFD(t)
	const x = vfiouser.IRQMSIX
	check := func(wantA, wantB int) {
		t.Helper()
		if gotA, gotB := a.Take(), b.Take(); gotA != wantA || gotB != wantB {
			t.Errorf("signalled %d and %d times, want %d and %d", gotA, gotB, wantA, wantB)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	must(srv.Trigger(x, 5))
	if st := srv.Stats(); st.TriggersUnassigned != 1 || st.Triggers != 0 {
		t.Errorf("stats %+v", st)
	}
	must(c.AssignIRQ(x, 5, a.FD(), b.FD()))
	check(0, 0) // an interrupt without an eventfd is gone
	must(srv.Trigger(x, 5))
	must(srv.Trigger(x, 5))
	must(srv.Trigger(x, 6))
	check(2, 1)
	must(c.TriggerIRQ(x, 0, 32))
	check(1, 1)
	must(c.AssignIRQ(x, 5, b.FD())) // exchanged while in use
	must(srv.Trigger(x, 5))
	check(0, 1)
	must(c.UnassignIRQ(x, 6, 1))
	must(c.TriggerIRQ(x, 5, 2))
	check(0, 1)
	must(c.DisableIRQ(x))
	must(srv.Trigger(x, 5))
	check(0, 0)
	for _, v := range [][2]int{{-1, 0}, {5, 0}, {x, -1}, {x, 32}, {vfiouser.IRQReq, 0}} {
		if err := srv.Trigger(v[0], v[1]); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("trigger of %v: %v", v, err)
		}
	}

	// An eventfd at its maximum, non-blocking and blocking, does not block us.
	full, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(full)
	for _, fd := range []int{full, a.FD()} {
		if _, err := unix.Write(fd, []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}); err != nil {
			t.Fatal(err)
		}
		must(c.AssignIRQ(x, 0, fd))
		must(srv.Trigger(x, 0))
	}
}

// TestINTx goes through masking, by message and by the resample eventfd.
func TestINTx(t *testing.T) {
	cfg := vfiousertest.Config()
	srv, c := vfiousertest.Start(t, vfiousertest.NewDevice(cfg), cfg, vfiouser.ClientConfig{})
	e, resample := vfiousertest.NewEventFD(t), vfiousertest.NewEventFD(t)
	const x = vfiouser.IRQINTx
	check := func(step string, want int) {
		t.Helper()
		if got := e.Take(); got != want {
			t.Errorf("%s: signalled %d times, want %d", step, got, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	must(srv.SetINTx(true))
	must(c.AssignIRQ(x, 0, e.FD()))
	check("assigned with the pin asserted", 1)
	must(c.MaskIRQ(x, 0, 1, false))
	check("unmasked with the pin asserted", 1)
	must(srv.SetINTx(true))
	check("asserted again", 0)
	must(srv.SetINTx(false))
	must(c.MaskIRQ(x, 0, 1, false))
	check("unmasked with the pin released", 0)
	must(srv.SetINTx(true))
	check("asserted", 1)
	must(srv.SetINTx(false))
	must(srv.SetINTx(true))
	check("asserted while masked", 0)
	must(srv.SetINTx(false))
	must(c.MaskIRQ(x, 0, 1, false))
	check("released before unmasked", 0)
	// Pulses.
	must(srv.Trigger(x, 0))
	must(srv.Trigger(x, 0))
	must(srv.Trigger(x, 0))
	check("three pulses", 1)
	must(c.MaskIRQ(x, 0, 1, false))
	check("pending pulse", 1)
	must(c.MaskIRQ(x, 0, 1, false))
	check("nothing pending", 0)
	must(c.MaskIRQ(x, 0, 1, true))
	must(srv.Trigger(x, 0))
	check("masked", 0)
	// KVM's end of interrupt.
	must(c.ResampleINTx(resample.FD()))
	resample.Signal()
	if n := e.Wait(); n != 1 {
		t.Errorf("resample: signalled %d times", n)
	}
	must(srv.SetINTx(true))
	resample.Signal()
	e.Wait()
	must(c.UnassignIRQ(x, 0, 1))
	must(srv.SetINTx(false))
	must(c.AssignIRQ(x, 0, e.FD()))
	check("assigned again, pin released", 0)
	must(srv.Trigger(x, 0))
	check("a mask does not outlive its eventfd", 1)
	must(c.DisableIRQ(x))
}

// beside runs op with work going on in other goroutines: a burst, so that the
// poller, which op needs, is not starved.
func beside(work func(i int), op func()) {
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for range 30 {
				work(i)
			}
		})
	}
	op()
	wg.Wait()
}

// TestTriggerRace signals from several goroutines while the client takes the
// eventfds away and gives others.
func TestTriggerRace(t *testing.T) {
	cfg := vfiousertest.Config()
	srv, c := vfiousertest.Start(t, vfiousertest.NewDevice(cfg), cfg, vfiouser.ClientConfig{})
	a, b := vfiousertest.NewEventFD(t), vfiousertest.NewEventFD(t)
	const x = vfiouser.IRQMSIX
	for range 100 {
		for _, op := range []func() error{
			func() error { return c.AssignIRQ(x, 0, a.FD(), a.FD(), a.FD()) },
			func() error { return c.AssignIRQ(x, 1, b.FD()) },
			func() error { return c.UnassignIRQ(x, 0, 2) },
			func() error { return c.DisableIRQ(x) },
		} {
			beside(func(i int) { srv.Trigger(x, i) }, func() {
				if err := op(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	a.Take()
	b.Take()
	if st := srv.Stats(); st.TriggersFailed != 0 {
		t.Errorf("%d triggers hit a descriptor that was no eventfd", st.TriggersFailed)
	}
}

// TestFlagTaken: a client that takes O_NONBLOCK away from eventfds that it has
// handed over holds up nobody, whichever way they are signalled.
func TestFlagTaken(t *testing.T) {
	t.Run("kernel", func(t *testing.T) { testFlagTaken(t, false) })
	t.Run("write", func(t *testing.T) { testFlagTaken(t, true) })
}

func testFlagTaken(t *testing.T, write bool) {
	cfg := vfiousertest.Config()
	srv, c := vfiousertest.Start(t, vfiousertest.NewDevice(cfg), cfg, vfiouser.ClientConfig{})
	if write {
		srv.WriteEvents()
	}
	full, pin, taken := vfiousertest.NewEventFD(t), vfiousertest.NewEventFD(t), vfiousertest.NewEventFD(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.AssignIRQ(vfiouser.IRQMSIX, 0, full.FD()))
	must(unix.SetNonblock(full.FD(), false))
	_, err := unix.Write(full.FD(), []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	must(err)
	must(srv.Trigger(vfiouser.IRQMSIX, 0))

	must(c.AssignIRQ(vfiouser.IRQINTx, 0, pin.FD()))
	must(c.ResampleINTx(taken.FD()))
	must(unix.SetNonblock(taken.FD(), false))
	must(srv.SetINTx(true))
	if n := pin.Wait(); n != 1 {
		t.Fatalf("asserted: signalled %d times", n)
	}
	taken.Signal()
	if n := pin.Wait(); n != 1 {
		t.Fatalf("resampled: signalled %d times", n)
	}
	// Whoever reads is at the next read by now or comes to it: it must not wait there.
	must(c.ResampleINTx(vfiousertest.NewEventFD(t).FD()))
}

// TestReadsRefused: interrupts go on where the kernel comes to refuse the reads by
// which it signals them, as under a filter of system calls that a device sets.
func TestReadsRefused(t *testing.T) {
	cfg := vfiousertest.Config()
	srv, c := vfiousertest.Start(t, vfiousertest.NewDevice(cfg), cfg, vfiouser.ClientConfig{})
	e := vfiousertest.NewEventFD(t)
	if err := c.AssignIRQ(vfiouser.IRQMSIX, 0, e.FD()); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		if err := srv.Trigger(vfiouser.IRQMSIX, 0); err != nil {
			t.Error(err)
		}
		if n, s := e.Take(), srv.Stats(); n != 1 || s.Triggers != uint64(round+1) || s.TriggersFailed != 0 {
			t.Errorf("round %d: signalled %d times, %+v", round, n, s)
		}
		srv.RefuseReads()
	}
}

// TestFilledBetween: a client that fills an eventfd and takes O_NONBLOCK away at
// the moment at which it is signalled holds up neither the device nor the
// connection.
func TestFilledBetween(t *testing.T) {
	cfg := vfiousertest.Config()
	srv, c := vfiousertest.Start(t, vfiousertest.NewDevice(cfg), cfg, vfiouser.ClientConfig{})
	e := vfiousertest.NewEventFD(t)
	const x = vfiouser.IRQMSIX
	for round := range 1500 {
		if err := c.AssignIRQ(x, 0, e.FD()); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { // the client
			// Not to be caught by it itself.
			if err := unix.SetNonblock(e.FD(), true); err != nil {
				t.Error(err)
			}
			e.Take()
			_, err := unix.Write(e.FD(), []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
			if err != nil && err != unix.EAGAIN {
				t.Error(err)
			}
			if err := unix.SetNonblock(e.FD(), false); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { // the device
			for range 10 {
				if err := srv.Trigger(x, 0); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() { // the connection
			for range 3 {
				if err := c.TriggerIRQ(x, 0, 1); err != nil {
					t.Error(err)
				}
			}
			if round%2 == 0 {
				if err := c.DisableIRQ(x); err != nil {
					t.Error(err)
				}
			}
		})
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(time.Minute):
			e.Take() // lets a writer go
			t.Fatalf("round %d: somebody waits for the eventfd", round)
		}
	}
	if n := srv.Stats().TriggersFailed; n != 0 {
		t.Errorf("%d triggers failed", n)
	}
	// The end of the connection finds it full and blocking.
	c.Close()
	if err := srv.Trigger(x, 0); err != nil {
		t.Error(err)
	}
}
