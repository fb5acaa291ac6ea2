// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"
)

// TestIF04_Types: every request type gets a response of its type, also when
// the request is refused (SPEC.md §5).
func TestIF04_Types(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	const nobody = 0xffff_0000_0000_1234
	for _, k := range []struct {
		name   string
		req    desc
		typ    uint8
		status uint16
	}{
		{"buffer send", desc{Type: 1, Modify: true, Base: r.in.IOVA, Conn: nobody, Length: 16}, 17, stBadConnection},
		{"buffer available", desc{Type: 2, Base: r.in.IOVA, Conn: nobody, Length: 16}, 17, stBadConnection},
		{"connect", desc{Type: 3}, 19, stBadControlBuffer},
		{"termination", desc{Type: 4, Conn: nobody}, 21, stBadConnection},
		{"listen", desc{Type: 5}, 20, stBadControlBuffer},
		{"cancellation", desc{Type: 6, Offset: 0x999}, 22, stBadTag},
		{"connection attribute control", desc{Type: 7, Conn: nobody, Aux: 1, Base: r.in.IOVA, Length: 16}, 23, stBadConnection},
	} {
		terminal(t, k.name, r.do(k.req), k.typ, k.status)
	}
	d, _ := r.attrs(reqAdapter, 0, new(ctl).get(0x0113, 8))
	terminal(t, "adapter attribute control", d, 24, stOK)
	d, _ = r.attrs(reqConnAttr, 0, new(ctl).get(0x0209, 8))
	terminal(t, "connection attribute control of the defaults", d, 23, stOK)
}

// TestIF04_BadType: a type that is no request is answered by type 31, status
// BAD_TYPE, under its tag.
func TestIF04_BadType(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	rejected := c.counter(ctrRejected)
	n := 0
	for typ := uint8(0); typ < 32; typ++ {
		if typ >= 1 && typ <= 8 {
			continue
		}
		d := r.do(desc{Type: typ, Flags: 0xff, Base: ^uint64(0), Conn: ^uint64(0), Length: ^uint32(0), Offset: ^uint32(0), Aux: 0xffff})
		terminal(t, fmt.Sprintf("type %d", typ), d, 31, 32)
		n++
	}
	want(t, "requests_rejected", c.counter(ctrRejected)-rejected, uint64(n))
	pong(t, r.do(r.ping()))
}

// TestIF06_Reserved: reserved bits and flags that a type does not allow get
// status RESERVED, and nothing else happens (SPEC.md §1, §5).
func TestIF06_Reserved(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	p := r.ping()
	for _, typ := range []uint8{2, 3, 4, 5, 6, 7, 8} {
		base := desc{Type: typ, Base: p.Base, Length: p.Length, Aux: 1}
		if typ == 2 {
			base.Aux = 0
		}
		for name, bad := range map[string]desc{
			"ASAP":   {ASAP: true},
			"MODIFY": {Modify: true},
			"FINAL":  {Flags: flagFinal},
		} {
			d := base
			d.ASAP, d.Modify, d.Flags = bad.ASAP, bad.Modify, bad.Flags
			got := r.do(d)
			if got.Aux != stReserved || !got.final() {
				t.Errorf("%s in a request of type %d: %v, want status RESERVED", name, typ, got)
			}
		}
	}
	for _, typ := range []uint8{4, 6, 7, 8} {
		for bit := uint8(1); bit != 0; bit <<= 1 {
			d := r.do(desc{Type: typ, Flags: bit, Base: p.Base, Length: p.Length, Aux: 1})
			want(t, fmt.Sprintf("flag %#x in type %d", bit, typ), d.Aux, stReserved)
		}
	}
	for _, bit := range []uint8{flagPeek, flagSkip, flagRedirect, flagOnce, flagReport} {
		d := r.do(desc{Type: 1, Modify: true, Flags: bit, Base: p.Base, Length: 16, Conn: 1})
		want(t, fmt.Sprintf("flag %#x in buffer send", bit), d.Aux, stReserved)
	}
	for _, typ := range []uint8{3, 5} {
		for _, bit := range []uint8{flagPeek, flagFragment, flagGroup, flagSkip, flagRedirect, flagOnce} {
			d := r.do(desc{Type: typ, Flags: bit, Base: p.Base, Length: p.Length, Aux: 1})
			want(t, fmt.Sprintf("flag %#x in type %d", bit, typ), d.Aux, stReserved)
		}
	}
	d := r.do(desc{Type: 8, Aux: 0x0101, Base: p.Base, Length: p.Length})
	want(t, "bits 15..8 beside the number of tuples", d.Aux, stReserved)
	pong(t, r.do(p))
}

// TestIF06_BadLength: offset below length, length at least 1, no wrap at 2^64
// (SPEC.md §5.3).
func TestIF06_BadLength(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	m := r.buffer(4096)
	for name, d := range map[string]desc{
		"length 0":        {Base: m.IOVA},
		"offset = length": {Base: m.IOVA, Length: 64, Offset: 64},
		"offset > length": {Base: m.IOVA, Length: 64, Offset: 0xffffffff},
		"beyond 2^64":     {Base: 0xffff_ffff_ffff_ff00, Length: 0x200},
		"all ones":        {Base: ^uint64(0), Length: ^uint32(0)},
	} {
		d.Type = reqAvailable
		terminal(t, "bulk buffer, "+name, r.do(d), rspDone, stBadLength)
	}
	held := r.available(0, m, 0)
	d := r.do(desc{Type: reqCancel, Offset: held})
	terminal(t, "cancellation of a good bulk buffer", d, rspCancelled, stOK)
	d = r.answer(held)
	terminal(t, "the bulk buffer", d, rspDone, stCancelled)
	want(t, "its base", d.Base, m.IOVA)
	want(t, "its length", d.Length, 0)
}

// TestIF07_ControlBuffer: what is wrong with a control buffer as a whole
// (SPEC.md §6).
func TestIF07_ControlBuffer(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	m := r.alloc(2 << 20)
	copy(m.Bytes, new(ctl).get(0x0113, 8).b)
	for _, typ := range []uint8{7, 8} {
		for _, k := range []struct {
			name   string
			d      desc
			status uint16
		}{
			{"base at 4", desc{Aux: 1, Base: m.IOVA + 4, Length: 16}, stBadAlignment},
			{"no tuples, length 16", desc{Base: m.IOVA, Length: 16}, stBadControlBuffer},
			{"one tuple, length 0", desc{Aux: 1, Base: m.IOVA}, stBadControlBuffer},
			{"no memory there", desc{Aux: 1, Base: 0x7fff_ffff_f000, Length: 16}, stBadMemory},
			{"beyond 2^64", desc{Aux: 1, Base: 0xffff_ffff_ffff_fff8, Length: 16}, stBadMemory},
		} {
			k.d.Type = typ
			got := r.do(k.d)
			if k.name == "beyond 2^64" && got.Aux == stBadLength {
				continue // both name the fault
			}
			terminal(t, fmt.Sprintf("type %d, %s", typ, k.name), got, typ+16, k.status)
		}
		d := r.do(desc{Type: typ, Aux: 1, Base: m.IOVA, Length: 1<<20 + 8})
		if d.Aux != stBadControlBuffer && d.Aux != stBadLength {
			t.Errorf("type %d, control buffer over 1 MiB: %v", typ, d)
		}
	}
	reads := c.moved(ctrControlReads, func() { r.attrs(reqAdapter, 0, new(ctl).get(0x0113, 8).get(0x0106, 8)) })
	want(t, "control_reads for one control buffer", reads, 1)
}

// TestIF08_Tuples: the results of get and set, each kind of refusal alone, and
// the others still done.
func TestIF08_Tuples(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	gets, sets := c.counter(ctrAttributeGets), c.counter(ctrAttributeSets)
	k := new(ctl).
		get(0x010d, 8).                        // 0 MAX_CONNECTIONS
		set(0x010d, 1234).                     // 1 previous value comes back
		get(0x010d, 8).                        // 2 the new one
		get(0x7abc, 8).                        // 3 unknown
		set(0x0108, 1).                        // 4 MEMORY_USED is read only
		get(0x7fff, 64).                       // 5 unknown, too
		get(0x0100, 5).                        // 6 MAC has 6 bytes
		tuple(true, 0x010d, []byte{1, 2, 3}).  // 7 a scalar of 3 bytes
		set(0x0106, 10).                       // 8 an MTU below 576
		get(0x0100, 6).                        // 9 MAC
		get(0x0209, 8).                        // 10 an attribute of connections
		tuple(true, 0x0101, make([]byte, 23)). // 11 an ADDRESS of 23 bytes
		set(0x010d, 65536).                    // 12 back
		get(0x010d, 0)                         // 13 no room at all
	d, rs := r.attrs(reqAdapter, 0, k)
	terminal(t, "a control of 14 tuples", d, rspAdapter, stPartial)
	for i, status := range []uint16{
		stOK, stOK, stOK, stUnknownAttribute, stReadOnly, stUnknownAttribute, stShortBuffer, stBadLength,
		stBadValue, stOK, 0xffff, stBadLength, stOK, stShortBuffer,
	} {
		if status == 0xffff {
			if rs[i].Status == stOK {
				t.Errorf("tuple %d: an attribute of connections was read from the adapter", i)
			}
			continue
		}
		want(t, fmt.Sprintf("status of tuple %d", i), rs[i].Status, status)
	}
	want(t, "tuples done OK", d.Length, 5)
	want(t, "first tuple that failed", d.Offset, 3)
	want(t, "MAX_CONNECTIONS", rs[0].scalar(), 65536)
	want(t, "previous value of a set", rs[1].scalar(), 65536)
	want(t, "MAX_CONNECTIONS after the set", rs[2].scalar(), 1234)
	want(t, "true length of MAC", rs[6].Length, 6)
	want(t, "room of a short buffer, untouched", string(rs[6].Value), "\x00\x00\x00\x00\x00")
	want(t, "length of MAC", rs[9].Length, 6)
	want(t, "true length with no room", rs[13].Length, 8)
	want(t, "MAC_LO", binary.LittleEndian.Uint32(rs[9].Value), c.read(0x0030))
	if n := c.counter(ctrAttributeGets) - gets; n < 3 {
		t.Errorf("attribute_gets moved by %d", n)
	}
	if n := c.counter(ctrAttributeSets) - sets; n < 2 {
		t.Errorf("attribute_sets moved by %d", n)
	}
	want(t, "MAX_CONNECTIONS at last", r.scalar(reqAdapter, 0, 0x010d), 65536)
}

// TestIF08_Malformed: a tuple that does not fit ends the walk: the ones before
// it are done, the rest are not looked at.
func TestIF08_Malformed(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	good := new(ctl).set(0x010d, 4321).b
	for name, tail := range map[string][]byte{
		"length one past the end": {0x0d, 0x81, 0, 0, 9, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1},
		"length 2^32-1":           {0x0d, 0x81, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 1, 1, 1, 1, 1, 1, 1},
		"length 2^32-8":           {0x0d, 0x81, 0, 0, 0xf8, 0xff, 0xff, 0xff, 1, 1, 1, 1, 1, 1, 1, 1},
		"half a header":           {0x0d, 0x81, 0, 0},
		"nothing":                 {},
	} {
		k := &ctl{b: append(append([]byte(nil), good...), tail...), tuples: 2}
		m, tag := r.control(reqAdapter, 0, k)
		d := r.answer(tag)
		terminal(t, name, d, rspAdapter, stBadControlBuffer)
		want(t, name+": tuples done", d.Length, 1)
		want(t, name+": first that failed", d.Offset, 1)
		want(t, name+": the tail is not written", string(m.Bytes[16:len(k.b)]), string(tail))
		want(t, name+": MAX_CONNECTIONS", r.scalar(reqAdapter, 0, 0x010d), 4321)
		r.setScalar(reqAdapter, 0, 0x010d, 65536)
	}
	k := &ctl{b: append(append([]byte(nil), good...), make([]byte, 64)...), tuples: 1}
	_, tag := r.control(reqAdapter, 0, k)
	terminal(t, "bytes behind the last tuple", r.answer(tag), rspAdapter, stOK)
}

// TestIF08_Many: 255 tuples in one request.
func TestIF08_Many(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	k := new(ctl)
	for i := range 255 {
		if i%2 == 0 {
			k.set(0x010d, uint64(1000+i))
		} else {
			k.get(0x010d, 8)
		}
	}
	d, rs := r.attrs(reqAdapter, 0, k)
	terminal(t, "255 tuples", d, rspAdapter, stOK)
	want(t, "tuples done", d.Length, 255)
	for i := 1; i < 255; i += 2 {
		want(t, fmt.Sprintf("tuple %d", i), rs[i].scalar(), uint64(1000+i-1))
	}
}

// TestIF08_Noise: control buffers of noise are answered, each once, and the
// adapter goes on.
func TestIF08_Noise(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	for range 100 {
		n := 8 * (1 + t.rng.IntN(32))
		m := r.alloc(n)
		for i := range m.Bytes {
			m.Bytes[i] = byte(t.rng.Uint32())
			if t.rng.IntN(3) == 0 {
				m.Bytes[i] = 0
			}
		}
		typ := uint8(3 + t.rng.IntN(6))
		tag := r.post(desc{Type: typ, Aux: uint16(1 + t.rng.IntN(255)), Base: m.IOVA, Length: uint32(n)})
		r.take("a terminal response to a control buffer of noise", func(d desc) bool { return d.Tag == tag && d.final() })
	}
	want(t, "requests without a terminal response", len(r.open), 0)
	pong(t, r.do(r.ping()))
}

// TestIF10_Tags: tag 0 is refused, and so is a tag in use, whose owner goes on
// (SPEC.md §5, §5.1).
func TestIF10_Tags(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	zero := r.ping()
	zero.body(r.inSlot(0))
	r.put(zero)
	r.ringIn()
	d := r.take("answer to tag 0", func(d desc) bool { return d.Tag == 0 })
	terminal(t, "tag 0", d, rspAdapter, stBadTag)

	m := r.buffer(64)
	held := r.available(0, m, 0)
	again := r.ping()
	again.Tag = held
	r.model.post(again)
	r.put(again)
	r.ringIn()
	d = r.answer(held)
	if d.Aux != stTagInUse || !d.final() {
		t.Errorf("a tag in use: %v, want TAG_IN_USE and FINAL", d)
	}
	d = r.do(desc{Type: reqCancel, Offset: held})
	terminal(t, "cancellation of the first", d, rspCancelled, stOK)
	terminal(t, "the first goes on until cancelled", r.answer(held), rspDone, stCancelled)
	again.Tag = held
	r.post(again)
	pong(t, r.answer(held))
}

// TestIF13_Adapter reads every attribute of the adapter (SPEC.md §7).
func TestIF13_Adapter(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	sizes := map[uint16]int{
		0x0100: 6, 0x0101: 24, 0x0106: 8, 0x0107: 8, 0x0108: 8, 0x0109: 8 * counters, 0x010c: 8,
		0x010d: 8, 0x010e: 8, 0x010f: 16, 0x0110: 8, 0x0111: 8, 0x0112: 8, 0x0113: 8,
	}
	for id := uint16(0x0100); id <= 0x0113; id++ {
		_, rs := r.attrs(reqAdapter, 0, new(ctl).get(id, 4096))
		want(t, fmt.Sprintf("status of get %#04x", id), rs[0].Status, stOK)
		if n, ok := sizes[id]; ok {
			want(t, fmt.Sprintf("length of %#04x", id), rs[0].Length, uint32(n))
		}
	}
	_, rs := r.attrs(reqAdapter, 0, new(ctl).get(0x0101, 24).get(0x0109, 8*counters).get(0x010b, 255))
	if a, prefix := addressOf(rs[0].Value); !a.IsValid() || a.Addr().IsUnspecified() || prefix < 8 || prefix > 32 {
		t.Errorf("ADDRESS4 is %v/%d", a, prefix)
	}
	if n := binary.LittleEndian.Uint64(rs[1].Value[8*ctrRequests:]); n == 0 {
		t.Errorf("COUNTERS says that no request was taken")
	}
	if rs[2].Length == 0 || rs[2].Length > 255 {
		t.Errorf("FIRMWARE has %d bytes", rs[2].Length)
	}
	for _, id := range []uint16{0x0100, 0x0108, 0x0109, 0x010a, 0x010b, 0x0111, 0x0112, 0x0113} {
		_, rs := r.attrs(reqAdapter, 0, new(ctl).tuple(true, id, make([]byte, 8)))
		want(t, fmt.Sprintf("set of %#04x", id), rs[0].Status, stReadOnly)
	}
	want(t, "LINK", r.scalar(reqAdapter, 0, 0x0113), 1)
	want(t, "QUEUE_COUNT", r.scalar(reqAdapter, 0, 0x0112), 1)
	want(t, "ENDPOINT_COUNT", r.scalar(reqAdapter, 0, 0x0111), 0)
	want(t, "OUT_THRESHOLD: 0, 1/8 of each table", r.scalar(reqAdapter, 0, 0x010c), 0)
	mtu := r.scalar(reqAdapter, 0, 0x0106)
	if mtu < 576 || mtu > 65535 {
		t.Errorf("MTU is %d", mtu)
	}
	status, _ := r.setScalar(reqAdapter, 0, 0x0106, 65536)
	want(t, "set of MTU to 65536", status, stBadValue)
	_, rs = r.attrs(reqAdapter, 0, new(ctl).tuple(true, 0x0103, []byte("example.test")).get(0x0103, 255))
	want(t, "set of DOMAIN", rs[0].Status, stOK)
	want(t, "DOMAIN", string(rs[1].Value[:min(rs[1].Length, 255)]), "example.test")
	_, rs = r.attrs(reqAdapter, 0, new(ctl).tuple(true, 0x0103, make([]byte, 12)))
	want(t, "set of DOMAIN to NULs", rs[0].Status, stBadValue)
	_, rs = r.attrs(reqAdapter, 0, new(ctl).tuple(true, 0x0104, make([]byte, 5*24)))
	if rs[0].Status != stBadLength && rs[0].Status != stBadValue {
		t.Errorf("set of five RESOLVERS: status %d", rs[0].Status)
	}
}

// TestIF14_Defaults reads every attribute of connections from the defaults and
// compares with the table of SPEC.md §7; those that set sticks to are set.
func TestIF14_Defaults(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	for _, a := range []struct {
		id  uint16
		def uint64
		set uint64 // a value to try; 0: none
	}{
		{0x0204, 30_000_000_000, 5_000_000_000}, // CONNECT_LIMIT
		{0x0205, 0, 60_000_000_000},             // LISTEN_LIMIT
		{0x0206, 4096, 17},                      // BACKLOG
		{0x0207, 524288, 65536},                 // RECEIVE_WINDOW
		{0x0208, 524288, 131072},                // SEND_BUFFER
		{0x0209, 0, 1},                          // NAGLE
		{0x020a, 1, 0},                          // SACK
		{0x020b, 0, 1},                          // KEEPALIVE
		{0x020c, 7_200_000_000_000, 9_000_000_000},
		{0x020d, 75_000_000_000, 1_000_000_000},
		{0x020e, 9, 3},
		{0x020f, 0, 0},
		{0x0210, 0, 0},
		{0x0211, 0, 0x10}, // TOS
		{0x0212, 64, 9},   // TTL
		{0x0213, 3, 0},    // PRIORITY
		{0x0214, 0, 0},
		{0x0215, 2, 0}, // COMPLETION_POINT
		{0x0216, 0xffff_ffff_ffff_ffff, 0},
		{0x0217, 0, 0},
		{0x0220, 0, 0},
		{0x0221, 32, 0},
		{0x0222, 262144, 0},
		{0x0223, 1_000_000, 0},
		{0x0225, 0, 0},
		{0x0226, 10_000_000, 0},
		{0x0227, 65536, 0},
		{0x0228, 131072, 0},
		{0x0230, 0, 0},
		{0x0231, 1, 0},
		{0x0232, 0, 0},
		{0x0233, 5_000_000, 0},
		{0x0234, 16, 0},
		{0x0236, 50, 0},
		{0x0239, 0, 0},
		{0x0240, 0, 0},
		{0x0243, 1_000_000, 0},
		{0x0250, 1, 0},
		{0x0254, 1_000_000_000, 0},
		{0x0256, 0, 0},
		{0x0261, 1 << 20, 0},
		{0x0263, 5_000_000, 0},
	} {
		name := fmt.Sprintf("attribute %#04x", a.id)
		want(t, name+": default", r.scalar(reqConnAttr, 0, a.id), a.def)
		if a.set != 0 {
			status, old := r.setScalar(reqConnAttr, 0, a.id, a.set)
			want(t, name+": set", status, stOK)
			want(t, name+": previous value", old, a.def)
			want(t, name+": value set", r.scalar(reqConnAttr, 0, a.id), a.set)
			r.setScalar(reqConnAttr, 0, a.id, a.def)
		}
	}
	for _, bad := range []struct {
		id     uint16
		v      uint64
		status uint16
	}{
		{0x0209, 2, stBadValue}, {0x0211, 256, stBadValue}, {0x0212, 0, stBadValue}, {0x0212, 256, stBadValue},
		{0x0215, 3, stBadValue}, {0x0210, 1, stNotSupported},
		{0x0200, 6, stReadOnly}, {0x0203, 4, stReadOnly}, {0x0280, 0, stReadOnly}, {0x028b, 0, stReadOnly},
	} {
		status, _ := r.setScalar(reqConnAttr, 0, bad.id, bad.v)
		want(t, fmt.Sprintf("set of %#04x to %d", bad.id, bad.v), status, bad.status)
	}
}
