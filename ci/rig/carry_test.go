// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"toebox/ci/conformance"
	"toebox/ci/rig/rigtest"
	"toebox/guestdriver"
	"toebox/vdev/device"
)

// carrier is an adapter whose driver carries connections over.
type carrier struct {
	*testing.T
	dev *device.Device
	bus guestdriver.Bus
	a   *guestdriver.Adapter
}

func newCarrier(t *testing.T, queues int) *carrier {
	t.Helper()
	d, bus := rigtest.Device(t, device.Config{Net: device.Net{Mode: device.ModeNAT}, Seed: 1})
	return &carrier{T: t, dev: d, bus: bus, a: rigtest.Driver(t, bus, guestdriver.Options{Queues: queues, CarryOver: true})}
}

// until waits for something that the other goroutines bring about.
func (c *carrier) until(what string, cond func() bool) {
	c.Helper()
	rigtest.Until(c, what, cond, func() string { return fmt.Sprintf("%+v", c.a.Stats()) })
}

// stop is an orderly stop, after which the driver starts the adapter over; with
// renew it finds new firmware then, with an engine that knows nothing.
func (c *carrier) stop(renew bool) {
	c.Helper()
	resets := c.a.Stats().Resets
	if renew {
		c.bus.Write32(0, 0x0100, 24)                        // NVM_ADDR: serial number
		c.bus.Write32(0, 0x0104, 0x61616161+uint32(resets)) // NVM_DATA
		for _, command := range []uint32{2, 3} {            // write, commit
			c.bus.Write32(0, 0x0108, command)
			c.until("the image", func() bool { return c.bus.Read32(0, 0x010c)&0xff == 2 })
		}
	}
	c.bus.Write32(0, 0x0010, 3) // CONTROL: RUN, STOP
	c.until("the driver to start over", func() bool { return c.a.Stats().Resets > resets })
}

// within bounds what a connection may take.
func within(t *testing.T, c net.Conn, err error) *guestdriver.Conn {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*guestdriver.Conn)
}

// TestCarryOver: orderly stops in the middle of transfers both ways. Writes and
// reads just go on, and both streams are exact.
func TestCarryOver(t *testing.T) {
	const total, parts, conns = 4 << 20, 4, 3
	for _, renew := range []bool{false, true} {
		name := "same firmware"
		if renew {
			name = "new firmware"
		}
		t.Run(name, func(t *testing.T) {
			c := newCarrier(t, 2)
			echo := echoServer(t)
			var all []net.Conn
			for range conns {
				nc, err := c.a.Dial("tcp", "10.0.2.2:"+echo)
				all = append(all, within(t, nc, err))
			}
			rigtest.Transfers(t, all, total, parts, func(part int) {
				c.stop(renew)
				c.until("all to go on", func() bool {
					s := c.a.Stats()
					return s.CarriedOver+s.CarryFailed >= uint64(conns*(part+1))
				})
			})
			if s := c.a.Stats(); s.CarriedOver != conns*(parts-1) || s.CarryFailed != 0 || s.Resets != parts-1 {
				t.Errorf("%d carried over, %d failed, %d restarts", s.CarriedOver, s.CarryFailed, s.Resets)
			}
		})
	}
}

// echoServer serves any number of connections on the host's loopback at once.
func echoServer(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go rigtest.Echo(l)
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// TestCarryOverStates: what connections that do not transfer find after a stop:
// a read that waits, data that nobody has read, a close, an attribute, a
// connection that a listener accepted; and those that cannot be carried over.
func TestCarryOverStates(t *testing.T) {
	c := newCarrier(t, 1)
	accepted := make(chan *net.TCPConn, 8)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			p, err := l.Accept()
			if err != nil {
				return
			}
			p.SetDeadline(time.Now().Add(patience))
			accepted <- p.(*net.TCPConn)
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	dial := func() (*guestdriver.Conn, *net.TCPConn) {
		t.Helper()
		nc, err := c.a.Dial("tcp", "10.0.2.2:"+port)
		conn := within(t, nc, err)
		p := <-accepted
		t.Cleanup(func() { p.Close() })
		return conn, p
	}
	idle, idlePeer := dial()
	full, fullPeer := dial()
	half, halfPeer := dial()
	ended, endedPeer := dial()
	if err := idle.SetTOS(32); err != nil {
		t.Fatal(err)
	}
	if err := half.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(halfPeer); err != nil || len(all) != 0 {
		t.Errorf("the peer of a half-closed connection got %q, %v", all, err)
	}
	if err := endedPeer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(ended); err != nil || len(all) != 0 {
		t.Errorf("got %q, %v of a peer that only closed", all, err)
	}
	got := make(chan error, 1)
	b := make([]byte, 1)
	go func() { _, err := idle.Read(b); got <- err }()
	// More than the driver's buffers take, less than with the window.
	waits := make([]byte, 300_000)
	conformance.Payload(waits, 5, 0)
	if _, err := fullPeer.Write(waits); err != nil {
		t.Fatal(err)
	}
	c.until("the data that waits", func() bool {
		n, err := c.a.Scalar(t.Context(), full.ID(), 0x0284)
		return err == nil && n == uint64(len(waits))
	})
	in, err := c.a.Listen("tcp", ":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	id := idle.ID()
	c.stop(true)

	if err := idle.SetNoDelay(true); err != nil { // waits for the connection
		t.Error(err)
	}
	if idle.ID() == id {
		t.Error("the connection has the id that it had")
	}
	if v, err := c.a.Scalar(t.Context(), idle.ID(), 0x0211); err != nil || v != 32 {
		t.Errorf("TOS is %d, %v", v, err)
	}
	if _, err := idlePeer.Write([]byte{77}); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil || b[0] != 77 {
		t.Errorf("the read that waited: %d, %v", b[0], err)
	}
	if err := fullPeer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(full); err != nil || !bytes.Equal(all, waits) {
		t.Errorf("%d bytes that waited, %v, want %d", len(all), err, len(waits))
	}
	if _, err := half.Write(b); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after CloseWrite: %v", err)
	}
	if _, err := halfPeer.Write([]byte("late")); err != nil {
		t.Error(err)
	}
	halfPeer.Close()
	if all, err := io.ReadAll(half); err != nil || string(all) != "late" {
		t.Errorf("a half-closed connection: %q, %v", all, err)
	}
	if _, err := ended.Write([]byte("late, too")); err != nil {
		t.Error(err)
	}
	ended.Close()
	if all, err := io.ReadAll(endedPeer); err != nil || string(all) != "late, too" {
		t.Errorf("the peer that closed got %q, %v", all, err)
	}
	if _, err := idle.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	idle.Close()
	if all, err := io.ReadAll(idlePeer); err != nil || string(all) != "bye" {
		t.Errorf("the peer got %q, %v", all, err)
	}

	// A reset is not an orderly stop.
	lost, _ := dial()
	go func() { _, err := lost.Read(make([]byte, 1)); got <- err }()
	c.bus.Write32(0, 0x0010, 1<<31)
	if err := <-got; !errors.Is(err, guestdriver.ErrReset) {
		t.Errorf("after a reset: %v", err)
	}
	if s := c.a.Stats(); s.CarriedOver != 4 || s.CarryFailed != 0 {
		t.Errorf("%+v", s)
	}
}

// TestCarryOverPackets: datagram endpoints are opened again, where they were and
// with what was set, after a stop and after a reset; a write and a read that wait
// go on.
func TestCarryOverPackets(t *testing.T) {
	c := newCarrier(t, 2)
	host, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := host.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = host.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	_, port, _ := net.SplitHostPort(host.LocalAddr().String())
	to, err := net.ResolveUDPAddr("udp4", "10.0.2.2:"+port)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := c.a.Dial("udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	dialed := nc.(*guestdriver.PacketConn)
	pc, err := c.a.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	bound := pc.(*guestdriver.PacketConn)
	for _, p := range []*guestdriver.PacketConn{dialed, bound} {
		t.Cleanup(func() { p.Close() })
		p.SetDeadline(time.Now().Add(patience))
		if err := errors.Join(p.SetTTL(9), p.SetSchedule(guestdriver.Schedule{Priority: 6})); err != nil {
			t.Fatal(err)
		}
	}
	exchange := func(word string) {
		t.Helper()
		b := make([]byte, 100)
		if _, err := dialed.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
		if n, err := dialed.Read(b); err != nil || string(b[:n]) != word {
			t.Fatalf("%q, %v, want %q", b[:n], err, word)
		}
		if _, err := bound.WriteToUDP([]byte(word), to); err != nil {
			t.Fatal(err)
		}
		if n, from, err := bound.ReadFromUDP(b); err != nil || string(b[:n]) != word || from.String() != to.String() {
			t.Fatalf("%q from %v, %v, want %q", b[:n], from, err, word)
		}
	}
	exchange("first")
	local, at, id := dialed.LocalAddr().String(), bound.LocalAddr().String(), dialed.ID()
	for i, restart := range []func(){
		func() { c.stop(false) },
		func() { c.stop(true) },
		func() { c.bus.Write32(0, 0x0010, 1<<31) },
	} {
		resets := c.a.Stats().Resets
		restart()
		c.until("the driver to start over", func() bool { return c.a.Stats().Resets > resets && dialed.ID() != 0 && dialed.ID() != id })
		exchange(strconv.Itoa(i))
		if dialed.LocalAddr().String() != local || bound.LocalAddr().String() != at {
			t.Errorf("they are at %v and %v, not at %s and %s", dialed.LocalAddr(), bound.LocalAddr(), local, at)
		}
		for _, p := range []*guestdriver.PacketConn{dialed, bound} {
			if s, err := p.Schedule(); err != nil || s != (guestdriver.Schedule{Priority: 6}) {
				t.Errorf("schedule %+v, %v", s, err)
			}
			c.until("TTL", func() bool { v, err := c.a.Scalar(t.Context(), p.ID(), 0x0212); return err == nil && v == 9 })
		}
		id = dialed.ID()
	}
}
