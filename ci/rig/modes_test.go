// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/vdev/port"
)

// TestModesUnderLoad changes how the driver learns of responses while bytes
// flow both ways: none is lost, and in the end hybrid mode gives the core back.
func TestModesUnderLoad(t *testing.T) {
	a := behind(t, port.NATConfig{})
	c, err := a.DialContext(t.Context(), "tcp", net.JoinHostPort("10.0.2.2", server(t, func(c *net.TCPConn) { io.Copy(c, c) })))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	payload := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{1}).Read(payload)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(payload)
		if err == nil {
			err = c.(half).CloseWrite()
		}
		sent <- err
	}()
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		modes := []guestdriver.Mode{guestdriver.ModePoll, guestdriver.ModeInterrupt, guestdriver.ModeHybrid}
		for n := 0; ; n++ {
			select {
			case <-stop:
				stopped <- n
				return
			default:
			}
			a.SetMode(modes[n%len(modes)], time.Duration(n%7)*10*time.Microsecond)
			for range n % 50 {
				runtime.Gosched()
			}
		}
	}()
	got, err := io.ReadAll(c)
	close(stop)
	t.Logf("%d changes", <-stopped)
	if err != nil || !bytes.Equal(got, payload) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(payload), err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if s := a.Stats(); s.MissedInterrupts != 0 {
		t.Errorf("%d responses were found by looking after the adapter", s.MissedInterrupts)
	}

	polls := func() uint64 { return a.Stats().Polls }
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	end := time.After(patience)
	// moves waits for a stretch in which the driver looks, or does not look,
	// at its tables.
	moves := func(what string, want bool) {
		t.Helper()
		for last := polls(); ; {
			select {
			case <-look.C:
			case <-end:
				t.Fatalf("%s: the driver polls: not %t", what, want)
			}
			now := polls()
			if (now != last) == want {
				return
			}
			last = now
		}
	}
	a.SetMode(guestdriver.ModePoll, 0)
	moves("polling mode, idle", true)
	a.SetMode(guestdriver.ModeHybrid, time.Millisecond)
	moves("hybrid mode, idle", false)
	a.SetMode(guestdriver.ModeInterrupt, 0)
	moves("interrupt mode, idle", false)
}
