// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"

	"toebox/guestdriver"
)

// Attributes of SPEC.md §14.8, and §14.4.
const (
	attrSendCache = 0x0117
	attrKeepSends = 0x0229
	attrGroup     = 0x0230
	attrGroupBy   = 0x0231
)

// Counters of SPEC.md §14.8.
const (
	ctrBytesRead     = 13
	ctrCopiesKept    = 114
	ctrCopiesFound   = 115
	ctrCopiesEvicted = 116
	ctrCopiesDropped = 117
	ctrBytesKept     = 118
	ctrGroupSends    = 119
)

// keeper is a connection with KEEP_SENDS, and what it has sent.
type keeper struct {
	*ring
	peer Session
	id   uint64
	all  []byte
}

func (r *ring) keeper() *keeper {
	r.Helper()
	p, id := r.serve(Script{{Op: OpDiscard}}, attr(attrKeepSends, 1))
	return &keeper{ring: r, peer: p, id: id}
}

// again sends a buffer, wants content to be what is sent, and says how many bytes
// the adapter has read for that.
func (k *keeper) again(m guestdriver.DMA, modified bool, content []byte) uint64 {
	k.Helper()
	k.all = append(k.all, content...)
	return k.moved(ctrBytesRead, func() {
		d := k.do(desc{Type: reqSend, Modify: modified, Base: m.IOVA, Conn: k.id, Length: uint32(len(m.Bytes))})
		terminal(k.T, "send", d, rspDone, stOK)
		want(k.T, "length", d.Length, uint32(len(m.Bytes)))
		k.settle()
	})
}

// arrives ends the sending direction and compares what the peer got.
func (k *keeper) arrives() {
	k.Helper()
	terminal(k.T, "termination", k.terminate(k.id, 0), rspTerminated, stOK)
	want(k.T, "SHA-256 at the peer", k.outcome(k.peer).Sum, sum(k.all))
}

// TestMM10_Modify: the second send of an unchanged 1 MiB buffer reads nothing; a
// host that changes it and says that it did not sends the old bytes, all of them.
func TestMM10_Modify(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	k := r.keeper()
	const size = 1 << 20
	m := r.buffer(size)
	Payload(m.Bytes, 1, 0)
	old := bytes.Clone(m.Bytes)
	found, kept, dropped := c.counter(ctrCopiesFound), c.counter(ctrCopiesKept), c.counter(ctrCopiesDropped)
	retained := c.counter(ctrBytesKept)
	want(t, "bytes read for the first send", k.again(m, true, old), size)
	want(t, "bytes read for the second", k.again(m, false, old), 0)
	Payload(m.Bytes, 2, 0)
	now := bytes.Clone(m.Bytes)
	want(t, "bytes read for a lie", k.again(m, false, old), 0)
	want(t, "bytes read for a changed buffer", k.again(m, true, now), size)
	want(t, "bytes read for it again", k.again(m, false, now), 0)
	want(t, "copies_found", c.counter(ctrCopiesFound)-found, 3)
	want(t, "copies_kept", c.counter(ctrCopiesKept)-kept, 2)
	want(t, "copies_dropped", c.counter(ctrCopiesDropped)-dropped, 1)
	want(t, "bytes_kept", c.counter(ctrBytesKept)-retained, 2*size)
	k.arrives()
}

// TestMM10_Evicted: a copy that gave way to another is read again, and so is one
// whose memory the adapter wrote to, or that was mapped anew.
func TestMM10_Evicted(t *T) {
	c := t.start()
	r := c.ring(0, ringConfig{})
	const size = 64 << 10
	status, old := r.setScalar(reqAdapter, 0, attrSendCache, 2*size+300)
	must(t, "set of SEND_CACHE", status, stOK)
	defer r.setScalar(reqAdapter, 0, attrSendCache, old)
	k := r.keeper()
	var all []guestdriver.DMA
	for i := range uint64(3) {
		m := r.buffer(size)
		Payload(m.Bytes, i, 0)
		all = append(all, m)
	}
	evicted := c.counter(ctrCopiesEvicted)
	for _, step := range []struct{ buffer, read int }{{0, size}, {1, size}, {0, 0}, {2, size}, {0, 0}, {1, size}, {1, 0}} {
		m := all[step.buffer]
		want(t, "bytes read", k.again(m, false, m.Bytes), uint64(step.read))
	}
	want(t, "copies_evicted", c.counter(ctrCopiesEvicted)-evicted, 2)

	m := all[1]
	dropped := c.counter(ctrCopiesDropped)
	must(t, "TEST_STATUS of a write", c.testDMA(m.IOVA+100, 64, 1, 1), 2)
	want(t, "bytes read after test DMA into the buffer", k.again(m, false, m.Bytes), size)
	n := r.buffer(64)
	post := desc{Type: reqAdapter, Aux: 1, Base: m.IOVA, Length: 16}
	copy(m.Bytes, new(ctl).get(0x0113, 8).b)
	terminal(t, "get of LINK into the buffer", r.do(post), rspAdapter, stOK)
	want(t, "bytes read after a value was written there", k.again(m, false, m.Bytes), size)
	want(t, "bytes read without a change", k.again(m, false, m.Bytes), 0)
	want(t, "copies_dropped", c.counter(ctrCopiesDropped)-dropped, 2)
	want(t, "bytes read of another buffer", k.again(n, false, n.Bytes), 64)
	k.arrives()
	status, _ = r.setScalar(reqAdapter, 0, attrSendCache, 1<<30+1)
	want(t, "SEND_CACHE beyond its bound", status, stBadValue)
}

// TestMM04_Broadcast: one buffer on the connections of a group, by one descriptor,
// and by one for each: read once, each connection has its result.
func TestMM04_Broadcast(t *T) {
	const conns, size = 10, 100_000
	c := t.start()
	r := c.ring(0, ringConfig{})
	var all []*keeper
	for range conns {
		p, id := r.serve(Script{{Op: OpDiscard}}, attr(attrGroup, 77), attr(attrGroupBy, 16), attr(attrKeepSends, 1))
		all = append(all, &keeper{ring: r, peer: p, id: id})
	}
	m := r.buffer(size)
	Payload(m.Bytes, 8, 0)
	const group = 0x8000_0000_0000_0000 | 77
	sends := c.counter(ctrGroupSends)
	read := c.moved(ctrBytesRead, func() {
		tag := r.post(desc{Type: reqSend, Flags: flagGroup, Modify: true, Base: m.IOVA, Conn: group, Length: size})
		ids := map[uint64]bool{}
		for i := range conns {
			d := r.answer(tag)
			if d.Type != rspDone || d.Aux != stOK || d.Length != size || ids[d.Conn] || d.final() != (i == conns-1) {
				t.Fatalf("result %d of a send to a group: %v", i, d)
			}
			ids[d.Conn] = true
		}
		for _, k := range all {
			want(t, "a result of each connection", ids[k.id], true)
		}
		r.settle()
	})
	want(t, "bytes read for all", read, size)
	want(t, "group_sends", c.counter(ctrGroupSends)-sends, conns)
	read = c.moved(ctrBytesRead, func() {
		var tags []uint32
		for i, k := range all {
			tags = append(tags, r.post(desc{Type: reqSend, Modify: i == 0, Base: m.IOVA, Conn: k.id, Length: size}))
		}
		for _, tag := range tags {
			terminal(t, "send of a connection", r.answer(tag), rspDone, stOK)
		}
		r.settle()
	})
	want(t, "bytes read for each", read, size)
	d := r.do(desc{Type: reqSend, Flags: flagGroup, Modify: true, Base: m.IOVA, Conn: group + 1, Length: size})
	terminal(t, "a group of nobody", d, rspDone, stBadConnection)
	for _, k := range all {
		k.all = append(bytes.Clone(m.Bytes), m.Bytes...)
		k.arrives()
	}
}
