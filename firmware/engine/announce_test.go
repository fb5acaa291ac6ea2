// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// recorder is a port that keeps what is sent.
type recorder struct {
	mu      sync.Mutex
	frames  [][]byte
	receive func([]engine.Frame)
}

func (r *recorder) MTU() int { return 1500 }

func (r *recorder) Attach(f func([]engine.Frame)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.receive = f
}

func (r *recorder) Transmit(frames []engine.Frame) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range frames {
		r.frames = append(r.frames, slices.Concat(f.Data...))
	}
	return len(frames)
}

func (r *recorder) Close() error { return nil }

// take returns the frames of the types given since the last time.
func (r *recorder) take(types ...string) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	var got [][]byte
	for _, f := range r.frames {
		if slices.Contains(types, hex.EncodeToString(f[12:14])) {
			got = append(got, f)
		}
	}
	r.frames = nil
	return got
}

// unhex is a frame in hexadecimal.
func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestAnnounce: what is on the wire, three times, one second apart.
func TestAnnounce(t *testing.T) {
	clock := enginetest.NewClock()
	port := &recorder{}
	e, err := engine.New(engine.Config{
		Port: port, MAC: []byte{2, 0, 0, 0, 0, 1}, Clock: clock,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24"), netip.MustParsePrefix("fd00::15/64")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	port.take()
	a := e.(engine.Announcer)
	request := unhex(t, `ffffffffffff 020000000001 0806 0001 0800 06 04 0001
		020000000001 0a00020f 000000000000 0a00020f`)
	reply := unhex(t, `ffffffffffff 020000000001 0806 0001 0800 06 04 0002
		020000000001 0a00020f 020000000001 0a00020f`)
	gateway := unhex(t, `ffffffffffff 020000000001 0806 0001 0800 06 04 0001
		020000000001 0a00020f 000000000000 0a000202`)
	advertisement := unhex(t, `333300000001 020000000001 86dd 60000000 0020 3a ff
		fd000000000000000000000000000015 ff020000000000000000000000000001
		88 00 5a73 20000000 fd000000000000000000000000000015 02 01 020000000001`)
	for _, c := range []struct {
		name  string
		addrs []string
		route string
		want  [][]byte
	}{
		{"IPv4", []string{"10.0.2.15"}, "", [][]byte{request, reply}},
		{"IPv6", []string{"fd00::15"}, "", [][]byte{advertisement}},
		{"a gateway", []string{"10.0.2.15"}, "10.0.2.2", [][]byte{request, reply, gateway}},
	} {
		if c.route != "" {
			if err := e.SetRoutes([]engine.Route{{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr(c.route)}}); err != nil {
				t.Fatal(err)
			}
			// The engine asks for the gateway's address itself, until it knows.
			port.receive([]engine.Frame{{Data: [][]byte{unhex(t, `020000000001 020000000002 0806 0001 0800 06 04 0002
				020000000002 0a000202 020000000001 0a00020f`)}}})
			port.take()
		}
		var addrs []netip.Addr
		for _, s := range c.addrs {
			addrs = append(addrs, netip.MustParseAddr(s))
		}
		a.Announce(addrs)
		a.Announce(addrs) // it is being announced already
		for i := range 5 {
			got := port.take("0806", "86dd")
			want := c.want
			if i >= 3 {
				want = nil
			}
			if len(got) != len(want) {
				t.Fatalf("%s, time %d: %d frames, want %d", c.name, i, len(got), len(want))
			}
			for _, w := range want {
				if !slices.ContainsFunc(got, func(f []byte) bool { return bytes.Equal(f, w) }) {
					t.Errorf("%s, time %d: not among % x:\n% x", c.name, i, got, w)
				}
			}
			clock.Advance(time.Second)
		}
	}
	for name, end := range map[string]func() error{
		"it is deaf": func() error { a.Deafen(true); a.Deafen(false); return nil },
		"the address is gone": func() error {
			own := []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24")}
			return errors.Join(e.SetAddresses(own), e.SetAddresses(append(own, netip.MustParsePrefix("fd00::15/64"))))
		},
	} {
		a.Announce([]netip.Addr{netip.MustParseAddr("fd00::15")})
		if err := end(); err != nil {
			t.Fatal(err)
		}
		port.take()
		clock.Advance(time.Minute)
		if got := port.take("86dd"); len(got) != 0 {
			t.Errorf("%d frames after %s", len(got), name)
		}
	}
	a.Announce([]netip.Addr{netip.MustParseAddr("fd00::15")})
	port.take()
	e.Close()
	clock.Advance(time.Minute)
	if got := port.take("86dd"); len(got) != 0 {
		t.Errorf("%d frames after the end", len(got))
	}
}

// TestDeafen: a deaf engine answers nothing, and does again.
func TestDeafen(t *testing.T) {
	port := &recorder{}
	e, err := engine.New(engine.Config{Port: port, MAC: []byte{2, 0, 0, 0, 0, 1}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	asked := unhex(t, `ffffffffffff 020000000002 0806 0001 0800 06 04 0001
		020000000002 0a000202 000000000000 0a00020f`)
	for i, deaf := range []bool{false, true, false} {
		e.(engine.Announcer).Deafen(deaf)
		port.receive([]engine.Frame{{Data: [][]byte{asked}}})
		if got := port.take("0806"); len(got) == 0 != deaf {
			t.Errorf("%d: deaf %v: %d answers", i, deaf, len(got))
		}
	}
	if n := e.Stats().FramesDetached; n != 1 {
		t.Errorf("%d frames were not heard", n)
	}
}
