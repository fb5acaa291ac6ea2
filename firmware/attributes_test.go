// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"toebox/firmware"
	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// TestControlBuffer compares a control buffer after an attribute control with
// literal bytes: each tuple has a result of its own.
func TestControlBuffer(t *testing.T) {
	r := newRig(t, 4)
	in := []byte{
		// MAX_CONNECTIONS, set to 100: the value before, 65536
		0x0d, 0x81, 0, 0, 8, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0,
		// MAX_CONNECTIONS, get
		0x0d, 0x01, 0, 0, 8, 0, 0, 0, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee,
		// MAC, get with room 4: SHORT_BUFFER, true length 6
		0x00, 0x01, 0, 0, 4, 0, 0, 0, 0xee, 0xee, 0xee, 0xee, 0xaa, 0xaa, 0xaa, 0xaa,
		// SERIAL, get with room 9: 5 bytes
		0x0a, 0x01, 0, 0, 9, 0, 0, 0, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa,
		// 0x0133: UNKNOWN_ATTRIBUTE
		0x33, 0x01, 0, 0, 0, 0, 0, 0,
		// MAC, set: READ_ONLY
		0x00, 0x81, 0, 0, 6, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0xaa, 0xaa,
		// MAX_CONNECTIONS, set with 4 bytes: BAD_LENGTH
		0x0d, 0x81, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0xaa, 0xaa, 0xaa, 0xaa,
		// LINK, get
		0x13, 0x01, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		// behind the last tuple
		0xaa, 0xaa,
	}
	want := []byte{
		0x0d, 0x81, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0,
		0x0d, 0x01, 0, 0, 8, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0,
		0x00, 0x01, 51, 0, 6, 0, 0, 0, 0xee, 0xee, 0xee, 0xee, 0xaa, 0xaa, 0xaa, 0xaa,
		0x0a, 0x01, 0, 0, 5, 0, 0, 0, 'T', '0', '0', '0', '1', 0xee, 0xee, 0xee, 0xee, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa,
		0x33, 0x01, 48, 0, 0, 0, 0, 0,
		0x00, 0x81, 49, 0, 6, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0xaa, 0xaa,
		0x0d, 0x81, 38, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0xaa, 0xaa, 0xaa, 0xaa,
		0x13, 0x01, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
		0xaa, 0xaa,
	}
	f, out := r.attributes(0, 8, in)
	if f.Type != abi.TypeAdapterAttrs || f.Aux != 1 || f.Length != 4 || f.Offset != 2 || f.Flags != abi.FlagFinal {
		t.Errorf("response %+v", f)
	}
	for i := range want {
		if out[i] != want[i] {
			t.Fatalf("byte %d is %#x, want %#x\n% x", i, out[i], want[i], out)
		}
	}
	r.wantCounter(abi.CounterAttributeSets, 3)
	r.wantCounter(abi.CounterAttributeGets, 5)

	// A tuple beyond the end: those before it are done.
	f, out = r.attributes(0, 2, []byte{0x13, 0x01, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x13, 0x01, 0, 0, 8, 0, 0, 0, 0})
	if f.Aux != 41 || f.Length != 1 || f.Offset != 1 || out[8] != 1 || out[24] != 0 {
		t.Errorf("response %+v, buffer % x", f, out)
	}

	// A buffer that can be read but not written.
	g := r.control(abi.TypeAdapterAttr, 1, abi.AppendGet(nil, abi.AttrLink, 8))
	r.Chip.ReadOnly(g.Base, 1)
	if f, _ := r.attributeRequest(g); f.Aux != 39 || f.Length != 1 || f.Offset != 0 {
		t.Errorf("response %+v", f)
	}
}

// TestAdapterAttributes gets and sets what is not a scalar, and checks what
// reaches the engine.
func TestAdapterAttributes(t *testing.T) {
	r := newRig(t, 4)
	set := func(a abi.Attribute, v []byte, want abi.Status) []byte {
		t.Helper()
		_, buf := r.attributes(0, 1, abi.AppendTuple(nil, true, a, v))
		s, n := abi.TupleResult(buf)
		if s != want {
			t.Errorf("set %#x to % x: %v, want %v", a, v, s, want)
		}
		return buf[8:min(len(buf), 8+int(n))]
	}
	address := func(s string, port uint16) []byte {
		p := netip.MustParsePrefix(s)
		return abi.AppendAddress(nil, abi.Address{Addr: p.Addr(), Prefix: uint8(p.Bits()), Port: port})
	}
	four, six := address("10.9.0.1/16", 0), address("2001:db8::1/64", 0)
	if old := set(abi.AttrAddress4, four, 0); !bytes.Equal(old, address("10.0.2.15/24", 0)) {
		t.Errorf("address before % x", old)
	}
	set(abi.AttrAddress6, six, 0)
	if got := r.fake.Addresses(); len(got) != 2 || got[0].String() != "10.9.0.1/16" || got[1].String() != "2001:db8::1/64" {
		t.Errorf("the engine has %v", got)
	}
	for _, bad := range [][]byte{six, address("10.9.0.1/16", 1), address("0.0.0.0/0", 0), address("224.0.0.1/4", 0), {0: 5, 23: 0}} {
		set(abi.AttrAddress4, bad, 52)
	}
	set(abi.AttrAddress4, four[:23], 38)
	set(abi.AttrAddress4, make([]byte, 24), 0)
	if got := r.fake.Addresses(); len(got) != 1 {
		t.Errorf("the engine has %v", got)
	}

	set(abi.AttrDomain, []byte("test"), 0)
	if got := r.attribute(0, abi.AttrDomain, 255); string(got) != "test" {
		t.Errorf("DOMAIN is %q", got)
	}
	set(abi.AttrDomain, []byte("a\x00b"), 52)
	set(abi.AttrDomain, []byte("\xff"), 52)
	set(abi.AttrDomain, make([]byte, 256), 38)
	set(abi.AttrResolvers, append(address("10.0.2.3/32", 53), address("10.0.2.4/32", 0)...), 0)
	if got := r.attribute(0, abi.AttrResolvers, 96); len(got) != 48 {
		t.Errorf("%d bytes of resolvers", len(got))
	}
	set(abi.AttrResolvers, make([]byte, 24), 52)
	set(abi.AttrResolvers, make([]byte, 5*24), 38)
	routes := append(address("0.0.0.0/0", 0), address("10.9.0.2/32", 0)...)
	set(abi.AttrRoutes, routes, 0)
	if got := r.attribute(0, abi.AttrRoutes, 64*48); !bytes.Equal(got, routes) {
		t.Errorf("ROUTES is % x", got)
	}
	if got := r.fake.Routes(); len(got) != 1 || got[0].Gateway.String() != "10.9.0.2" {
		t.Errorf("the engine has %v", got)
	}
	set(abi.AttrRoutes, routes[:24], 38)
	set(abi.AttrRoutes, append(six, routes[24:]...), 52)
	set(abi.AttrRoutes, make([]byte, 65*48), 38)
	scalar := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	set(abi.AttrMTU, scalar(1501), 52)
	set(abi.AttrMTU, scalar(575), 52)
	set(abi.AttrMTU, scalar(1500), 0)
	set(abi.AttrMTU, scalar(1400), 16) // the fake cannot
	set(abi.AttrMemorySize, scalar(0), 52)
	set(abi.AttrMemorySize, scalar(1<<30+1), 52)
	set(abi.AttrOutThreshold, scalar(65537), 52)
	set(abi.AttrMaxConnections, scalar(1<<24+1), 52)
	set(abi.AttrSpillThreshold, scalar(1<<30+1), 52)
	set(abi.AttrBufferTable, make([]byte, 16), 0)
	set(abi.AttrRTT, scalar(1), 48)

	// All that can be got, can, and has the length of its kind.
	for _, info := range abi.Attributes() {
		if info.Connection {
			continue
		}
		got := r.attribute(0, info.ID, 4096)
		if info.Kind == abi.KindScalar && len(got) != 8 {
			t.Errorf("%s has %d bytes", info.Name, len(got))
		}
	}
	if got := r.attribute(0, abi.AttrCounters, 4096); binary.LittleEndian.Uint64(got) < 40 {
		t.Errorf("%d requests counted", binary.LittleEndian.Uint64(got))
	}

	// A reset takes it all back.
	r.fw.Reset()
	if got := r.fake.Addresses(); len(got) != 1 || got[0].String() != "10.0.2.15/24" {
		t.Errorf("the engine has %v after a reset", got)
	}
}

// TestAliases: more addresses, what is told of them, and that a stopped adapter is
// deaf.
func TestAliases(t *testing.T) {
	r := newRig(t, 4)
	address := func(list ...string) (b []byte) {
		for _, s := range list {
			p := netip.MustParsePrefix(s)
			b = abi.AppendAddress(b, abi.Address{Addr: p.Addr(), Prefix: uint8(p.Bits())})
		}
		return b
	}
	many := bytes.Repeat(address("10.0.2.16/24"), 17)
	port := address("10.0.2.16/24")
	port[2] = 1
	aliases := address("10.0.2.16/24", "fd00::16/64")
	for i, c := range []struct {
		attr      abi.Attribute
		value     []byte
		status    abi.Status
		addresses int
		announced int
		expecting int
	}{
		{0x0115, aliases, 0, 3, 0, 1},
		{0x0115, many, 38, 3, 0, 1},
		{0x0115, aliases[:23], 38, 3, 0, 1},
		{0x0115, port, 52, 3, 0, 1},
		{0x0115, make([]byte, 24), 52, 3, 0, 1},
		{0x0115, address("0.0.0.0/0"), 52, 3, 0, 1},
		{0x0115, address("224.0.0.1/4"), 52, 3, 0, 1},
		{0x0116, address("10.0.2.15/24", "fd00::16/64"), 0, 3, 2, 1},
		{0x0116, address("10.0.2.17/24"), 9, 3, 2, 1},
		{0x0116, make([]byte, 24), 9, 3, 2, 1},
		{0x0116, many, 38, 3, 2, 1},
		{0x0101, make([]byte, 24), 0, 2, 2, 1}, // aliases stay
		{0x0115, nil, 0, 0, 2, 2},
	} {
		_, buf := r.attributes(0, 1, abi.AppendTuple(nil, true, c.attr, c.value))
		if s, _ := abi.TupleResult(buf); s != c.status {
			t.Errorf("%d: status %v, want %v", i, s, c.status)
		}
		told, expecting, _ := r.fake.TakenOver()
		if n := len(r.fake.Addresses()); n != c.addresses || len(told) != c.announced || expecting != c.expecting {
			t.Errorf("%d: %d addresses, announced %v, %d times expecting", i, n, told, expecting)
		}
		if c.attr == 0x0115 && c.status == 0 {
			if got := r.attribute(0, c.attr, 24*16); !bytes.Equal(got, c.value) {
				t.Errorf("%d: ALIASES is % x", i, got)
			}
		}
	}
	wantDeaf := func(when string, want bool) {
		t.Helper()
		if _, _, deaf := r.fake.TakenOver(); deaf != want {
			t.Errorf("%s: deaf %v", when, deaf)
		}
	}
	stop := func() {
		t.Helper()
		r.fw.Stop()
		if err := r.Wait("the stop", r.fw.Stopped); err != nil {
			t.Fatal(err)
		}
	}
	wantDeaf("running", false)
	stop()
	wantDeaf("stopped", true)
	r.fw.Run()
	wantDeaf("running again", false)
	stop()
	r.fw.Reset()
	wantDeaf("after a reset", false)
	if got := r.fake.Addresses(); len(got) != 1 || got[0].String() != "10.0.2.15/24" {
		t.Errorf("the engine has %v after a reset", got)
	}
}

// TestConnectionAttributes gets and sets those of one connection.
func TestConnectionAttributes(t *testing.T) {
	r := newRig(t, 4)
	id, ep := r.connect()
	ep.SetInfo(engine.Info{MSS: 1460, Cwnd: 10, SendWindow: 60000, RTT: 3 * time.Millisecond, Retransmits: 2})
	ep.SetFlow(engine.Flow{Sent: 7, MSS: 1460, SendWindow: 60000, RTT: 3 * time.Millisecond})
	ep.Deliver([]byte("abcde"))
	own := r.buffer(abi.TypeBufferAvailable, id, 7)
	send := r.buffer(abi.TypeBufferSend, id, 9)
	r.post(own, send)
	r.next() // 5 bytes
	r.settle()
	ep.Ack(4)
	le := binary.LittleEndian
	for a, want := range map[abi.Attribute]uint64{
		0x0200: 6, 0x0203: 4, 0x0280: 3e6, 0x0281: 14600, 0x0282: 9, 0x0283: 4, 0x0284: 5, 0x0285: 5, 0x0288: 2, 0x028b: 1460,
		0x0204: 30e9, 0x0206: 4096, 0x0207: 512 << 10, 0x0215: 2, 0x0216: 1<<64 - 1, 0x0222: 256 << 10,
	} {
		if got := le.Uint64(r.attribute(id, a, 8)); got != want {
			t.Errorf("attribute %#x is %d, want %d", a, got, want)
		}
	}
	held := le.AppendUint64(le.AppendUint32(le.AppendUint32(nil, send.Tag), 9), send.Base)
	held = le.AppendUint64(le.AppendUint32(le.AppendUint32(held, own.Tag), 7), own.Base)
	if got := r.attribute(id, abi.AttrHeldBuffers, 64); !bytes.Equal(got, held) {
		t.Errorf("HELD_BUFFERS is % x", got)
	}
	record := r.attribute(id, abi.AttrRecord, 192)
	for at, want := range map[int]uint64{0: id, 64: 9, 72: 7, 80: 4, 88: 5, 96: 5, 120: 3e6, 160: 1e9} {
		if got := le.Uint64(record[at:]); got != want {
			t.Errorf("record at %d: %d, want %d", at, got, want)
		}
	}
	if record[8] != 4 || le.Uint16(record[34:]) != 80 || !bytes.Equal(record[40:44], []byte{10, 0, 2, 2}) ||
		le.Uint32(record[56:]) != 4 || le.Uint32(record[60:]) != 6 || le.Uint32(record[104:]) != 1460 || le.Uint32(record[112:]) != 60000 {
		t.Errorf("record % x", record)
	}
	set := func(conn uint64, a abi.Attribute, v uint64, want abi.Status) uint64 {
		t.Helper()
		f := r.control(abi.TypeConnectionAttr, 1, abi.AppendSetScalar(nil, a, v))
		f.Conn = conn
		_, buf := r.attributeRequest(f)
		if s, _ := abi.TupleResult(buf); s != want {
			t.Errorf("set %#x to %d: %v, want %v", a, v, s, want)
		}
		return le.Uint64(buf[8:])
	}
	if old := set(id, abi.AttrNagle, 1, 0); old != 0 {
		t.Errorf("NAGLE was %d", old)
	}
	if v, _ := ep.Option(engine.OptNoDelay); v != 0 {
		t.Errorf("no delay is %d", v)
	}
	set(id, abi.AttrNagle, 2, 52)
	set(id, abi.AttrState, 0, 49)
	set(id, abi.AttrMAC, 0, 48)
	set(id, abi.AttrSendBuffer, 4095, 52)
	set(id, abi.AttrDMAWhen, 2, 52)
	set(id, abi.AttrPriority, 8, 52)

	// Defaults hold for connections made afterwards, and until a reset.
	set(0, abi.AttrTTL, 7, 0)
	set(0, abi.AttrTTL, 256, 52)
	if old := set(0, abi.AttrTTL, 8, 0); old != 7 {
		t.Errorf("TTL was %d", old)
	}
	if got := le.Uint64(r.attribute(id, abi.AttrTTL, 8)); got != 64 {
		t.Errorf("TTL of an older connection is %d", got)
	}
	next, ep2 := r.connect()
	if got := le.Uint64(r.attribute(next, abi.AttrTTL, 8)); got != 8 {
		t.Errorf("TTL of a new connection is %d", got)
	}
	if v, _ := ep2.Option(engine.OptTTL); v != 8 {
		t.Errorf("the engine's TTL is %d", v)
	}
	get := func(a abi.Attribute, want abi.Status) {
		t.Helper()
		f := r.control(abi.TypeConnectionAttr, 1, abi.AppendGet(nil, a, 16))
		_, buf := r.attributeRequest(f)
		if s, _ := abi.TupleResult(buf); s != want {
			t.Errorf("get %#x of the defaults: %v, want %v", a, s, want)
		}
	}
	get(abi.AttrTTL, 0)
	get(abi.AttrNotifyPattern, 0)
	get(abi.AttrRTT, 36)
	get(abi.AttrMAC, 48)
	for _, info := range abi.Attributes() {
		if info.Connection && !datagramOnly(info.ID) {
			r.attribute(id, info.ID, 256)
		}
	}
}

// TestDefaults takes defaults from the non-volatile image, if they are good.
func TestDefaults(t *testing.T) {
	r := newRig(t, 4, func(c *firmware.Config) {
		c.Defaults = map[abi.Attribute]uint64{
			abi.AttrTTL: 9, abi.AttrTOS: 256, abi.AttrMaxConnections: 17, abi.AttrRTT: 5, abi.AttrCongestion: 1, 0x7000: 1,
		}
	})
	id, _ := r.connect()
	le := binary.LittleEndian
	for a, want := range map[abi.Attribute]uint64{abi.AttrTTL: 9, abi.AttrTOS: 0, abi.AttrCongestion: 0} {
		if got := le.Uint64(r.attribute(id, a, 8)); got != want {
			t.Errorf("attribute %#x is %d, want %d", a, got, want)
		}
	}
	if got := le.Uint64(r.attribute(0, abi.AttrMaxConnections, 8)); got != 17 {
		t.Errorf("MAX_CONNECTIONS is %d", got)
	}
	r.attributes(0, 1, abi.AppendSetScalar(nil, abi.AttrMaxConnections, 18))
	r.fw.Reset()
	r.Clear()
	r.fw.Run()
	if s := r.Create(); s != 0 {
		t.Fatalf("create: %v", s)
	}
	if got := le.Uint64(r.attribute(0, abi.AttrMaxConnections, 8)); got != 17 {
		t.Errorf("MAX_CONNECTIONS is %d after a reset", got)
	}
}

// TestPolicyClock checks both modes and the change between them.
func TestPolicyClock(t *testing.T) {
	r := newRig(t, 4)
	at := func(want uint64) {
		t.Helper()
		if got := r.fw.PolicyNow(); got != want {
			t.Errorf("the clock shows %d, want %d", got, want)
		}
	}
	at(1e9)
	r.fw.StepPolicyClock(5) // real: no effect
	at(1e9)
	r.fw.SetPolicyClock(true)
	r.clock.advance(time.Second)
	at(1e9)
	r.fw.StepPolicyClock(5)
	r.fw.SetPolicyClock(true)
	at(1e9 + 5)
	r.fw.SetPolicyClock(false)
	at(1e9 + 5)
	r.clock.advance(time.Second)
	at(2e9 + 5)
	r.fw.Reset()
	at(3e9)
}

// TestLink reads LINK with and without a port that leads somewhere.
func TestLink(t *testing.T) {
	for noLink, want := range map[bool]uint64{false: 1, true: 0} {
		r := newRig(t, 4, func(c *firmware.Config) { c.NoLink = noLink })
		if got := binary.LittleEndian.Uint64(r.attribute(0, abi.AttrLink, 8)); got != want {
			t.Errorf("no link %t: LINK is %d, want %d", noLink, got, want)
		}
	}
}

// datagramOnly are the attributes that SPEC.md §7 marks D.
func datagramOnly(a abi.Attribute) bool { return a >= 0x0218 && a <= 0x021c }
