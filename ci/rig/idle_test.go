// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"context"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"toebox/ci/rig"
	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// TestIdleConnections measures the memory of an idle connection in a whole
// device: firmware, engine, and the nat gateway with its own end (CE04). The
// host's end is a bare socket. What adapter and gateway take each is told by
// comparison with firmware's test of the same name.
func TestIdleConnections(t *testing.T) {
	const n, each = 2000, 250
	r, err := rig.Inproc(rig.Config{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	bus, err := r.Env().Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bus.Close(); err != nil {
			t.Error(err)
		}
	})
	cmd, err := bus.ReadConfig(4, 2)
	if err == nil {
		err = bus.WriteConfig(4, 2, cmd|4)
	}
	if err != nil {
		t.Fatal(err)
	}
	bus.Write32(0, abi.RegControl, abi.ControlRun)
	q, err := guestdriver.NewQueue(bus, 0, guestdriver.QueueConfig{Mode: guestdriver.ModePoll, Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := []int{l}
	t.Cleanup(func() {
		for _, fd := range ends {
			unix.Close(fd)
		}
	})
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(l, 4096); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(l)
	if err != nil {
		t.Fatal(err)
	}
	target := abi.Target{
		Protocol: 6, Count: 1, Limit: 1 << 40, Local: netip.MustParseAddrPort("0.0.0.0:0"),
		Remote: netip.AddrPortFrom(r.Device().NAT().Gateway(), uint16(sa.(*unix.SockaddrInet4).Port)),
	}
	ctl, err := bus.AllocDMA(each * (abi.TupleHeaderSize + abi.TargetSize))
	if err != nil {
		t.Fatal(err)
	}
	var tuples []byte
	for range each {
		tuples = abi.AppendTuple(tuples, true, abi.AttrTarget, abi.AppendTarget(nil, target))
	}
	copy(ctl.Bytes, tuples)
	connect := func(tag uint32, count int) {
		t.Helper()
		err := q.Post(abi.Fields{Type: abi.TypeConnect, Tag: tag, Aux: uint16(count), Base: ctl.IOVA,
			Length: uint32(count * (abi.TupleHeaderSize + abi.TargetSize))})
		if err != nil {
			t.Fatal(err)
		}
		for range count {
			f, err := q.Next(ctx)
			if err != nil || f.Type != abi.TypeCompletion || f.Aux != 0 {
				t.Fatalf("completion %+v, %v", f, err)
			}
			fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			ends = append(ends, fd)
		}
	}
	connect(1, 1) // what the first one sets up is not counted
	memory, goroutines := inUse(), runtime.NumGoroutine()
	for i := range n / each {
		connect(uint32(2+i), each)
	}
	size, grown := int64(inUse()-memory)/n, runtime.NumGoroutine()-goroutines
	t.Logf("%d idle connections: %d bytes each in adapter and nat gateway, %d goroutines more", n, size, grown)
	if size > 64<<10 {
		t.Errorf("an idle connection takes %d bytes in adapter and gateway", size)
	}
}

// inUse is the memory in use after a collection.
func inUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
