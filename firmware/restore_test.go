// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"net/netip"
	"testing"

	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

// disowner notes what it is told of connections that do not come.
type disowner struct {
	*enginetest.Engine
	disowned chan [2]netip.AddrPort
}

func (d *disowner) Disown(local, remote netip.AddrPort) {
	d.disowned <- [2]netip.AddrPort{local, remote}
}

// TestRestoreFails: the peer of a connection that cannot go on is let go, but
// not for want of memory, which the host may find.
func TestRestoreFails(t *testing.T) {
	d := &disowner{enginetest.NewEngine(), make(chan [2]netip.AddrPort, 2)}
	r := &rig{t: t, fake: d.Engine}
	r.start(d, 5)
	record := abi.AppendStateRecord(nil, &abi.StateRecord{
		Conn: 5, Local: abi.Address{Addr: netip.MustParseAddr("10.0.2.15"), Port: 1}, Remote: abi.Address{Addr: netip.MustParseAddr("10.0.2.2"), Port: 2},
		State: 4, Protocol: 6, MSS: 1460, Flags: abi.RecordExact,
	})
	for _, c := range []struct {
		memory   uint64
		want     uint16
		disowned int
	}{{4096, 11, 0}, {1 << 20, 16, 1}} { // this engine cannot
		if set, _ := r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrMemorySize, c.memory)); set.Aux != 0 {
			t.Fatalf("MEMORY_SIZE: %+v", set)
		}
		f := r.control(abi.TypeConnect, 1, abi.AppendTuple(nil, true, 0x0004, record))
		r.post(f)
		if got := r.next(); got.Aux != c.want || len(d.disowned) != c.disowned {
			t.Errorf("with %d bytes: %+v and %d disowned, want status %d and %d", c.memory, got, len(d.disowned), c.want, c.disowned)
		}
	}
	if got, want := <-d.disowned, [2]netip.AddrPort{netip.MustParseAddrPort("10.0.2.15:1"), netip.MustParseAddrPort("10.0.2.2:2")}; got != want {
		t.Errorf("disowned %v, want %v", got, want)
	}
}

// TestRestoreChecks tries records that are none, or say what cannot be.
func TestRestoreChecks(t *testing.T) {
	r := newRig(t, 5)
	good := abi.StateRecord{
		Conn: 5, Local: abi.Address{Addr: netip.MustParseAddr("10.0.2.15"), Port: 1}, Remote: abi.Address{Addr: netip.MustParseAddr("10.0.2.2"), Port: 2},
		State: 4, Protocol: 6, MSS: 1460, Flags: abi.RecordExact, Received: 9, Delivered: 4, Unread: 5,
	}
	bad := good
	try := func(want uint16, value []byte) {
		t.Helper()
		f := r.control(abi.TypeConnect, 1, abi.AppendTuple(nil, true, 0x0004, value))
		r.post(f)
		if got := r.next(); got.Type != abi.TypeCompletion || got.Aux != want || got.Conn != 0 || got.Flags != abi.FlagFinal || got.Tag != f.Tag {
			t.Errorf("%+v, want status %d", got, want)
		}
	}
	record := func(change func(*abi.StateRecord)) []byte {
		bad = good
		change(&bad)
		return abi.AppendStateRecord(nil, &bad)
	}
	try(38, nil)
	try(38, make([]byte, 193))
	try(52, append([]byte{8: 9}, make([]byte, 183)...)) // an unknown family
	try(16, record(func(r *abi.StateRecord) { r.Protocol = 17 }))
	try(16, record(func(r *abi.StateRecord) { r.State = 3 }))
	try(16, record(func(r *abi.StateRecord) { r.State = 10 }))
	try(9, record(func(r *abi.StateRecord) { r.Local = abi.Address{} }))
	try(9, record(func(r *abi.StateRecord) { r.Remote.Port = 0 }))
	try(9, record(func(r *abi.StateRecord) { r.Remote.Addr = netip.MustParseAddr("fd00::1") }))
	try(9, record(func(r *abi.StateRecord) { r.Remote.Addr = netip.MustParseAddr("224.0.0.1") }))
	try(52, record(func(r *abi.StateRecord) { r.Acked = 1 }))
	try(52, record(func(r *abi.StateRecord) { r.Sent = 1 }))
	try(52, record(func(r *abi.StateRecord) { r.Delivered = 10 }))
	try(14, record(func(r *abi.StateRecord) { r.Flags = 0 }))
	try(14, record(func(r *abi.StateRecord) { r.Unread = 4 }))
	try(16, record(func(*abi.StateRecord) {})) // this engine cannot
	// It is no target of a listen, and not to be asked for.
	f := r.control(abi.TypeListen, 1, abi.AppendTuple(nil, true, 0x0004, make([]byte, 192)))
	r.post(f)
	if got := r.next(); got.Aux != 48 {
		t.Errorf("RESTORE in a listen request: %+v", got)
	}
	r.wantCounter(abi.CounterConnections, 0)
	r.wantCounter(abi.CounterMemoryUsed, 0)
}
