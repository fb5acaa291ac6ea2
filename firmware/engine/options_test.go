// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

func TestOptions(t *testing.T) {
	const (
		tcp = 1 << iota
		udp
	)
	second := int64(time.Second)
	tests := []struct {
		name   string
		option engine.Option
		on     int
		good   []int64
		bad    []int64
		cannot []int64
	}{
		{"send buffer", engine.OptSendBuffer, tcp | udp, []int64{4096, 16 << 20}, []int64{4095, 16<<20 + 1, -1}, nil},
		{"receive window", engine.OptReceiveWindow, tcp | udp, []int64{4096, 8 << 20}, []int64{2047, 16<<20 + 1, -1}, nil},
		{"no delay", engine.OptNoDelay, tcp, []int64{0, 1}, []int64{2, -1}, nil},
		{"keep-alive", engine.OptKeepAlive, tcp, []int64{1, 0}, []int64{2, -1}, nil},
		{"idle", engine.OptKeepAliveIdle, tcp, []int64{second, 32767 * second}, []int64{0, -1, 32768 * second}, nil},
		{"interval", engine.OptKeepAliveInterval, tcp, []int64{second, 32767 * second}, []int64{0, -1, 32768 * second}, nil},
		{"count", engine.OptKeepAliveCount, tcp, []int64{1, 127}, []int64{0, -1, 128}, nil},
		{"user timeout", engine.OptUserTimeout, tcp, []int64{second, 0}, []int64{-1}, nil},
		{"TOS", engine.OptTOS, tcp | udp, []int64{0xb8, 0}, []int64{-1, 256}, []int64{1, 2}},
		{"TTL", engine.OptTTL, tcp | udp, []int64{1, 255}, []int64{0, -1, 256}, nil},
		{"SACK", engine.OptSACK, tcp, []int64{0, 1}, []int64{2, -1}, nil},
		{"linger", engine.OptLinger, tcp, []int64{0, second, -1}, []int64{65536 * second}, nil},
		{"congestion", engine.OptCongestion, tcp, []int64{0}, nil, []int64{1, -1}},
		{"broadcast", engine.OptBroadcast, udp, []int64{1, 0}, []int64{2, -1}, nil},
		{"multicast TTL", engine.OptMulticastTTL, udp, []int64{0, 255, 1}, []int64{256, -1}, nil},
		{"multicast loop", engine.OptMulticastLoop, udp, []int64{0, 1}, []int64{2, -1}, nil},
		{"unknown", engine.OptMulticastLoop + 1, 0, nil, nil, []int64{0, 1}},
	}
	a, _ := twoEngines(t, enginetest.PipeOptions{}, nil)
	for _, v6 := range []bool{false, true} {
		for kind, p := range map[int]engine.Protocol{tcp: engine.TCP, udp: engine.UDP} {
			ep := open(t, a, p, v6)
			for _, tt := range tests {
				if tt.on&kind == 0 {
					if err := ep.SetOption(tt.option, 1); !errors.Is(err, engine.ErrNotSupported) {
						t.Errorf("protocol %d has %s: %v", p, tt.name, err)
					}
					if _, err := ep.Option(tt.option); !errors.Is(err, engine.ErrNotSupported) {
						t.Errorf("protocol %d has %s: %v", p, tt.name, err)
					}
					continue
				}
				if _, err := ep.Option(tt.option); err != nil {
					t.Errorf("%s at first: %v", tt.name, err)
				}
				for _, v := range tt.good {
					if err := ep.SetOption(tt.option, v); err != nil {
						t.Errorf("%s = %d: %v", tt.name, v, err)
					}
					if got, err := ep.Option(tt.option); got != v || err != nil {
						t.Errorf("%s is %d, %v, want %d", tt.name, got, err, v)
					}
				}
				before, _ := ep.Option(tt.option)
				for _, v := range tt.bad {
					if err := ep.SetOption(tt.option, v); !errors.Is(err, engine.ErrBadOption) {
						t.Errorf("%s = %d: %v", tt.name, v, err)
					}
				}
				for _, v := range tt.cannot {
					if err := ep.SetOption(tt.option, v); !errors.Is(err, engine.ErrNotSupported) {
						t.Errorf("%s = %d: %v", tt.name, v, err)
					}
				}
				if got, _ := ep.Option(tt.option); got != before {
					t.Errorf("%s went from %d to %d by errors", tt.name, before, got)
				}
			}
			if ttl, _ := open(t, a, p, v6).Option(engine.OptTTL); ttl != 64 {
				t.Errorf("TTL %d by default", ttl)
			}
			ep.Close()
		}
	}
}

// options lists the kinds of the TCP options of an IPv4 frame, and checks the
// checksum.
func synOptions(t *testing.T, frame []byte) (kinds []byte) {
	const ip, tcp = 14, 34
	seg := frame[tcp : ip+int(binary.BigEndian.Uint16(frame[ip+2:]))]
	sum := uint32(6 + len(seg))
	add := func(b []byte) {
		for i := range b {
			sum += uint32(b[i]) << (8 * (1 - i%2))
		}
	}
	add(frame[ip+12 : ip+20])
	add(seg)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	if sum != 0xffff {
		t.Errorf("checksum of % x is wrong", seg)
	}
	for o := seg[20 : seg[12]>>4*4]; len(o) > 0; {
		kinds = append(kinds, o[0])
		if o[0] <= 1 {
			o = o[1:]
		} else {
			o = o[o[1]:]
		}
	}
	return kinds
}

func TestSACKOption(t *testing.T) {
	for _, sack := range []int64{1, 0} {
		var kinds atomic.Pointer[[]byte]
		a, b := twoEngines(t, enginetest.PipeOptions{Drop: func(port int, frame []byte) bool {
			if flags, _, ok := segment(frame); ok && port == 1 && flags == flagSYN {
				k := synOptions(t, frame)
				kinds.Store(&k)
			}
			return false
		}}, nil)
		listen(t, a, false, 80, 1)
		c := open(t, b, engine.TCP, false)
		if err := c.SetOption(engine.OptSACK, sack); err != nil {
			t.Fatal(err)
		}
		if err := c.Connect(addrPort(a.v4, 80)); err != nil {
			t.Fatal(err)
		}
		c.ev.until(t, "the handshake", func() bool { return c.ev.seen(engine.EventConnected) })
		permitted := int64(0)
		for _, k := range *kinds.Load() {
			if k == 4 { // SACK permitted, RFC 2018
				permitted = 1
			}
		}
		if permitted != sack {
			t.Errorf("SACK %d: SYN options % x", sack, *kinds.Load())
		}
		if err := c.SetOption(engine.OptSACK, 0); !errors.Is(err, engine.ErrNotSupported) {
			t.Errorf("after the handshake: %v", err)
		}
	}
}

func TestConfig(t *testing.T) {
	port, other := enginetest.Pipe(enginetest.PipeOptions{MTU: 2000})
	defer port.Close()
	defer other.Close()
	good := engine.Config{Port: port, MAC: macs[0]}
	tests := []struct {
		name   string
		change func(*engine.Config)
	}{
		{"no port", func(c *engine.Config) { c.Port = nil }},
		{"no MAC", func(c *engine.Config) { c.MAC = nil }},
		{"multicast MAC", func(c *engine.Config) { c.MAC = net.HardwareAddr{3, 0, 0, 0, 0, 1} }},
		{"MTU beyond the port's", func(c *engine.Config) { c.MTU = 2001 }},
		{"small MTU", func(c *engine.Config) { c.MTU = 1279 }},
		{"negative MTU", func(c *engine.Config) { c.MTU = -1 }},
		{"CUBIC", func(c *engine.Config) { c.Congestion = "cubic" }},
		{"time wait", func(c *engine.Config) { c.TimeWait = -1 }},
		{"no address", func(c *engine.Config) { c.Addresses = []netip.Prefix{{}} }},
		{"mapped address", func(c *engine.Config) {
			c.Addresses = []netip.Prefix{netip.MustParsePrefix("::ffff:1.2.3.4/120")}
		}},
		{"an address twice", func(c *engine.Config) {
			c.Addresses = []netip.Prefix{netip.MustParsePrefix("1.2.3.4/8"), netip.MustParsePrefix("1.2.3.4/16")}
		}},
		{"a route of two versions", func(c *engine.Config) {
			c.Routes = []engine.Route{{Destination: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("1.2.3.4")}}
		}},
		{"no destination", func(c *engine.Config) { c.Routes = []engine.Route{{}} }},
		{"no end of addresses", func(c *engine.Config) { c.Addresses = make([]netip.Prefix, 5000) }},
		{"no end of routes", func(c *engine.Config) { c.Routes = make([]engine.Route, 5000) }},
	}
	for _, tt := range tests {
		cfg := good
		tt.change(&cfg)
		if e, err := engine.New(cfg); err == nil {
			t.Errorf("%s: taken", tt.name)
			_ = e.Close()
		}
	}
	if e, err := engine.New(good); err != nil {
		t.Error(err)
	} else if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// Addresses and routes change while the engine runs.
func TestReconfigure(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	client, server := connected(t, a, b)
	if err := a.SetAddresses(append([]netip.Prefix{netip.MustParsePrefix("10.1.0.1/24")}, nets[0]...)); err != nil {
		t.Fatal(err)
	}
	send(t, client, []byte("kept"))
	receive(t, server, 4)

	to := mustAddrPort("10.1.0.1:80")
	c := open(t, b, engine.TCP, false)
	if err := c.Connect(to); !errors.Is(err, engine.ErrNetUnreachable) {
		t.Errorf("no route yet: %v", err)
	}
	for _, routes := range [][]engine.Route{
		{{Destination: netip.MustParsePrefix("10.1.0.0/24")}},
		{{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: a.v4}},
	} {
		if err := b.SetRoutes(routes); err != nil {
			t.Fatal(err)
		}
		c := connect(t, b, false, to)
		if got := c.Info().Local.Addr(); got != b.v4 {
			t.Errorf("local address %v", got)
		}
		c.Close()
	}
	if err := a.SetAddresses(nil); err != nil {
		t.Fatal(err)
	}
	p := open(t, a, engine.TCP, false)
	if err := p.Bind(addrPort(a.v4, 99)); !errors.Is(err, engine.ErrBadAddress) {
		t.Errorf("bind to a removed address: %v", err)
	}
}

// The same seed gives the same sequence numbers and ports.
func TestRandom(t *testing.T) {
	ports := make(map[uint16]bool)
	for range 2 {
		a, b := twoEngines(t, enginetest.PipeOptions{}, func(c *engine.Config) { c.Random = &counter{} })
		listen(t, a, false, 80, 1)
		ports[connect(t, b, false, addrPort(a.v4, 80)).Info().Local.Port()] = true
	}
	if len(ports) != 1 {
		t.Errorf("ports %v from one source", ports)
	}
}

// counter is no good source of randomness.
type counter struct{ n byte }

var _ io.Reader = (*counter)(nil)

func (c *counter) Read(p []byte) (int, error) {
	for i := range p {
		c.n += 37
		p[i] = c.n
	}
	return len(p), nil
}
