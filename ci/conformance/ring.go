// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"

	"toebox/guestdriver"
	"toebox/vdev/abi"
)

// Types of requests and responses (SPEC.md §5).
const (
	reqSend      = 1
	reqAvailable = 2
	reqConnect   = 3
	reqTerminate = 4
	reqListen    = 5
	reqCancel    = 6
	reqConnAttr  = 7
	reqAdapter   = 8

	rspReceive    = 16
	rspDone       = 17
	rspArrival    = 18
	rspCompletion = 19
	rspListen     = 20
	rspTerminated = 21
	rspCancelled  = 22
	rspConnAttr   = 23
	rspAdapter    = 24
	rspRejected   = 31
)

// Flags (SPEC.md §5, byte 1).
const (
	flagFinal    = 0x01
	flagPeek     = 0x02
	flagFragment = 0x04
	flagGroup    = 0x08
	flagSkip     = 0x10
	flagRedirect = 0x20
	flagOnce     = 0x40
	flagCombined = 0x40
	flagReport   = 0x80
)

// Status codes (SPEC.md §8).
const (
	stOK               = 0
	stPartial          = 1
	stCancelled        = 2
	stTimedOut         = 3
	stRefused          = 4
	stReset            = 5
	stHostUnreachable  = 6
	stNetUnreachable   = 7
	stAddressInUse     = 8
	stBadAddress       = 9
	stNoMemory         = 11
	stClosed           = 12
	stEndOfStream      = 13
	stTooLate          = 15
	stNotSupported     = 16
	stTruncated        = 17
	stBadType          = 32
	stReserved         = 33
	stBadTag           = 34
	stTagInUse         = 35
	stBadConnection    = 36
	stWrongQueue       = 37
	stBadLength        = 38
	stBadMemory        = 39
	stBadAlignment     = 40
	stBadControlBuffer = 41
	stBadProtocol      = 42
	stBadState         = 43
	stBadMode          = 44
	stUnknownAttribute = 48
	stReadOnly         = 49
	stWrongDirection   = 50
	stShortBuffer      = 51
	stBadValue         = 52
	stQueueBusy        = 64
	stNotRunning       = 65
	stBadVector        = 66
	stBadSize          = 67
	stOverlap          = 68
	stBadOwner         = 69
	stBadCommand       = 70
)

// desc is a descriptor (SPEC.md §5). Aux is bytes 2-3.
type desc struct {
	Type   uint8
	ASAP   bool
	Modify bool
	Flags  uint8
	Aux    uint16
	Tag    uint32
	Base   uint64
	Conn   uint64
	Length uint32
	Offset uint32
}

func (d desc) final() bool { return d.Flags&flagFinal != 0 }

func (d desc) String() string {
	return fmt.Sprintf("{type %d flags %#02x aux %d tag %#x base %#x conn %#x length %#x offset %#x}",
		d.Type, d.Flags, d.Aux, d.Tag, d.Base, d.Conn, d.Length, d.Offset)
}

// word is word 0 with owner 1, the host's.
func (d desc) word() uint32 {
	w := 0x80 | uint32(d.Type)<<2 | uint32(d.Flags)<<8 | uint32(d.Aux)<<16
	if d.ASAP {
		w |= 2
	}
	if d.Modify {
		w |= 1
	}
	return w
}

// body stores bytes 4-31 of a slot.
func (d desc) body(s []byte) {
	binary.LittleEndian.PutUint32(s[4:], d.Tag)
	binary.LittleEndian.PutUint64(s[8:], d.Base)
	binary.LittleEndian.PutUint64(s[16:], d.Conn)
	binary.LittleEndian.PutUint32(s[24:], d.Length)
	binary.LittleEndian.PutUint32(s[28:], d.Offset)
}

// parse reads a slot whose word 0 was loaded.
func parse(word uint32, s []byte) desc {
	return desc{
		Type: uint8(word >> 2 & 0x1f), ASAP: word&2 != 0, Modify: word&1 != 0,
		Flags: uint8(word >> 8), Aux: uint16(word >> 16),
		Tag: binary.LittleEndian.Uint32(s[4:]), Base: binary.LittleEndian.Uint64(s[8:]),
		Conn: binary.LittleEndian.Uint64(s[16:]), Length: binary.LittleEndian.Uint32(s[24:]),
		Offset: binary.LittleEndian.Uint32(s[28:]),
	}
}

// Offsets in the event block (SPEC.md §4.4).
const (
	evInPublished  = 0x00
	evOutPublished = 0x40
	evInFreed      = 0x80
	evOutFreed     = 0xc0
)

// ring is the host's side of one queue. It belongs to one goroutine.
type ring struct {
	*card
	q               uint32
	inLog, outLog   uint
	in, out, ev     guestdriver.DMA
	produced, taken uint32 // indexes, modulo 2^30
	rung            uint32 // index of the last doorbell
	tags            uint32
	doorbells       int

	open   map[uint32]uint8 // tag to type of the requests without terminal response
	got    []desc           // consumed, not yet asked for
	strict bool             // what breaks a rule of history fails the test
	model  *history
}

// ringConfig says how a ring is created; the zero value is a good one.
type ringConfig struct {
	inLog, outLog uint // 0: 6, 64 slots
	vector        uint32
	first         uint32 // event word OUT_PUBLISHED at create
}

// build allocates and fills the tables and writes the registers of queue q,
// but does not create it.
func (c *card) build(q uint32, cfg ringConfig) *ring {
	c.Helper()
	if cfg.inLog == 0 {
		cfg.inLog = 6
	}
	if cfg.outLog == 0 {
		cfg.outLog = 6
	}
	if cfg.vector == 0 {
		cfg.vector = q + 1
	}
	r := &ring{
		card: c, q: q, inLog: cfg.inLog, outLog: cfg.outLog, tags: 0x1000 * (q + 1),
		in: c.alloc(32 << cfg.inLog), out: c.alloc(32 << cfg.outLog), ev: c.alloc(256),
		open: map[uint32]uint8{}, strict: true, model: newHistory(),
	}
	r.blank()
	abi.StoreWord(r.ev.Bytes[evOutPublished:], cfg.first)
	r.program()
	r.reg(0x24, cfg.vector)
	return r
}

// blank gives both tables their initial owners (SPEC.md §4.1).
func (r *ring) blank() {
	clear(r.in.Bytes)
	for s := 0; s < 1<<r.outLog; s++ {
		abi.StoreWord(r.out.Bytes[32*s:], 0x80)
	}
	clear(r.ev.Bytes)
	r.produced, r.taken, r.rung = 0, 0, 0
}

// program writes bases and sizes.
func (r *ring) program() {
	r.reg(0x08, uint32(r.in.IOVA))
	r.reg(0x0c, uint32(r.in.IOVA>>32))
	r.reg(0x10, uint32(r.out.IOVA))
	r.reg(0x14, uint32(r.out.IOVA>>32))
	r.reg(0x18, uint32(r.ev.IOVA))
	r.reg(0x1c, uint32(r.ev.IOVA>>32))
	r.reg(0x20, uint32(r.inLog)|uint32(r.outLog)<<8)
}

// ring builds and creates a queue.
func (c *card) ring(q uint32, cfg ringConfig) *ring {
	c.Helper()
	r := c.build(q, cfg)
	r.create()
	return r
}

func (r *ring) reg(off, v uint32) { r.write(0x1000+0x40*r.q+off, v) }

func (r *ring) state() uint32      { return r.read(0x1000+0x40*r.q+0x04) & 0xf }
func (r *ring) lastStatus() uint32 { return r.read(0x1000+0x40*r.q+0x04) >> 16 }

// command writes Q_COMMAND.
func (r *ring) command(v uint32) { r.reg(0x00, v) }

func (r *ring) create() {
	r.Helper()
	r.command(1)
	r.until("Q_STATE running", func() bool {
		if s := r.lastStatus(); s != 0 {
			r.Fatalf("create of queue %d: status %d", r.q, s)
		}
		return r.state() == 1
	})
}

// await waits for a state.
func (r *ring) await(state uint32) {
	r.Helper()
	r.until(fmt.Sprintf("Q_STATE %d", state), func() bool { return r.state() == state })
}

// settle pauses the queue and lets it go on: what it did before is then in its
// indexes and in the counters (SPEC.md §3.2, §13).
func (r *ring) settle() {
	r.Helper()
	r.command(2)
	r.await(2)
	r.command(3)
	r.await(1)
}

// tag returns a fresh tag.
func (r *ring) tag() uint32 { r.tags++; return r.tags }

func (r *ring) inSlot(i uint32) []byte {
	s := i & (1<<r.inLog - 1)
	return r.in.Bytes[32*s : 32*s+32]
}

func (r *ring) outSlot(i uint32) []byte {
	s := i & (1<<r.outLog - 1)
	return r.out.Bytes[32*s : 32*s+32]
}

// note records a request as outstanding.
func (r *ring) note(d desc) {
	r.model.post(d)
	if d.Tag != 0 {
		r.open[d.Tag] = d.Type
	}
}

// post publishes requests in order and tells the adapter if it asked for it.
// A tag of 0 gets a fresh one; the tag of the last is returned.
func (r *ring) post(ds ...desc) uint32 {
	r.Helper()
	old := r.produced
	var last uint32
	for _, d := range ds {
		if d.Tag == 0 {
			d.Tag = r.tag()
		}
		r.note(d)
		r.put(d)
		last = d.Tag
	}
	r.tell(old)
	return last
}

// put publishes one request without telling, waiting for a free slot.
func (r *ring) put(d desc) {
	r.Helper()
	s := r.inSlot(r.produced)
	r.until("a free input slot", func() bool {
		if abi.LoadWord(s)&0x80 == 0 {
			return true
		}
		r.consume()
		return false
	})
	d.body(s)
	abi.StoreWord(s, d.word())
	r.produced = (r.produced + 1) & (1<<30 - 1)
}

// tell rings the doorbell if event word IN_PUBLISHED asks for it.
func (r *ring) tell(old uint32) {
	if asked(abi.LoadWord(r.ev.Bytes[evInPublished:]), old, r.produced) {
		r.ringIn()
	}
}

// ringIn rings for what was published since the doorbell before.
func (r *ring) ringIn() {
	if r.rung == r.produced {
		return
	}
	r.rung = r.produced
	r.doorbells++
	r.write(0x4000+8*r.q, r.produced)
}

// asked is the rule of SPEC.md §4.4.
func asked(word, old, now uint32) bool {
	const mask = 1<<30 - 1
	switch word >> 30 {
	case 0:
		return false
	case 1:
		return old != now && (now-(word&mask)-1)&mask < (now-old)&mask
	}
	return old != now
}

// consume takes what the adapter published, hands the slots back, and books
// each response. It reports whether there was any.
func (r *ring) consume() bool {
	old := r.taken
	for {
		s := r.outSlot(r.taken)
		w := abi.LoadWord(s)
		if w&0x80 != 0 || r.taken-old == 1<<r.outLog {
			break
		}
		d := parse(w, s)
		abi.StoreWord(s, w|0x80)
		r.taken = (r.taken + 1) & (1<<30 - 1)
		r.book(d)
	}
	if r.taken == old {
		return false
	}
	if asked(abi.LoadWord(r.ev.Bytes[evOutFreed:]), old, r.taken) {
		r.write(0x4004+8*r.q, r.taken)
	}
	return true
}

// book checks a response against the ledger: IF10 holds in every test.
func (r *ring) book(d desc) {
	r.got = append(r.got, d)
	b := r.reportBytes(d)
	if d.Type == rspReceive && d.Flags&flagCombined != 0 {
		for _, tag := range r.model.covers(d) {
			delete(r.open, tag)
		}
	}
	for _, broken := range r.model.response(d, b) {
		if r.strict {
			r.Errorf("%s", broken)
		}
	}
	if d.final() && d.Aux != stTagInUse {
		delete(r.open, d.Tag)
	}
	list, _ := records(b)
	for _, rec := range list {
		if rec.flags&flagFinal != 0 {
			delete(r.open, rec.tag)
		}
	}
}

// reportBytes is what a response says is in a report buffer, nil if it is none.
func (r *ring) reportBytes(d desc) []byte {
	if d.Flags&flagReport == 0 {
		return nil
	}
	return r.at(d.Base+uint64(d.Offset), int(d.Length))
}

// take returns the first response that fits, consuming as long as it takes.
func (r *ring) take(what string, fits func(desc) bool) desc {
	r.Helper()
	d, ok := r.maybe(func(f func() bool) bool { return r.within(r.Env.scale(patience), f) }, fits)
	if !ok {
		r.Fatalf("no %s in %v; responses not asked for: %v; open tags: %v", what, r.Env.scale(patience), r.got, r.open)
	}
	return d
}

// find returns the first consumed response that fits, if there is one.
func (r *ring) find(fits func(desc) bool) (desc, bool) {
	r.consume()
	for i, d := range r.got {
		if fits(d) {
			r.got = append(r.got[:i], r.got[i+1:]...)
			return d, true
		}
	}
	return desc{}, false
}

func (r *ring) maybe(wait func(func() bool) bool, fits func(desc) bool) (desc, bool) {
	var d desc
	ok := wait(func() bool {
		var ok bool
		d, ok = r.find(fits)
		return ok
	})
	return d, ok
}

// answer returns the next response of a tag.
func (r *ring) answer(tag uint32) desc {
	r.Helper()
	return r.take(fmt.Sprintf("response of tag %#x", tag), func(d desc) bool { return d.Tag == tag })
}

// do posts a request and returns its next response.
func (r *ring) do(d desc) desc {
	r.Helper()
	return r.answer(r.post(d))
}

// terminal checks that d is the terminal response of that type and status.
func terminal(t *T, what string, d desc, typ uint8, status uint16) {
	t.Helper()
	if d.Type != typ || d.Aux != status || !d.final() {
		t.Errorf("%s: got %v, want type %d, status %d, FINAL", what, d, typ, status)
	}
}

// unsolicited returns the next response with tag 0 of that type and id.
func (r *ring) unsolicited(typ uint8, conn uint64) desc {
	r.Helper()
	return r.take(fmt.Sprintf("unsolicited response of type %d", typ), func(d desc) bool {
		return d.Tag == 0 && d.Type == typ && (conn == 0 || d.Conn == conn)
	})
}

// quiet fails the test if a response that fits comes within a moment.
func (r *ring) quiet(what string, fits func(desc) bool) {
	r.Helper()
	if d, ok := r.maybe(func(f func() bool) bool { return r.within(nothing, f) }, fits); ok {
		r.Fatalf("%s: %v", what, d)
	}
}
