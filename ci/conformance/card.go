// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"toebox/guestdriver"
)

// Registers of BAR0 that the helpers use (SPEC.md §3), by the names of the text.
const (
	regID         = 0x0000
	regControl    = 0x0010
	regStatus     = 0x0014
	regGeneration = 0x0018
	regEvents     = 0x0020
	regEventMask  = 0x0024
	regChecker    = 0x00e0
	regStatSelect = 0x0200
	regStatLo     = 0x0204
	regStatHi     = 0x0208
)

// Counters that tests look at (SPEC.md §13), by index.
const (
	ctrRequests         = 0
	ctrResponses        = 1
	ctrRejected         = 2
	ctrDoorbellsIn      = 3
	ctrDoorbellIgnored  = 5
	ctrInterrupts       = 6
	ctrSuppressed       = 7
	ctrUrgent           = 8
	ctrDescriptorReads  = 9
	ctrDescriptorWrites = 10
	ctrControlReads     = 15
	ctrDMAErrors        = 17
	ctrConnects         = 18
	ctrConnectsOK       = 19
	ctrConnectsFailed   = 20
	ctrListens          = 21
	ctrArrivals         = 22
	ctrTerminations     = 23
	ctrRemoteCloses     = 24
	ctrResets           = 25
	ctrCancellations    = 26
	ctrConnections      = 27
	ctrBytesSent        = 29
	ctrBytesAcked       = 30
	ctrBytesReceived    = 31
	ctrBytesDelivered   = 32
	ctrPoolDeliveries   = 37
	ctrOwnDeliveries    = 38
	ctrPoolEmpty        = 39
	ctrResponsesHeld    = 40
	ctrBadAccess        = 46
	ctrBadValue         = 47
	ctrFunctionResets   = 48
	ctrAttributeGets    = 49
	ctrAttributeSets    = 50
	ctrFramesSent       = 51
	ctrFramesReceived   = 52
	ctrMemoryUsed       = 57
	ctrArrivalsRefused  = 58
	ctrViolations       = 59
	ctrPasses           = 61

	ctrDatagramsSent      = 76
	ctrDatagramsDelivered = 77
	ctrDatagramsDropped   = 78
	ctrDatagramsTruncated = 79
	ctrDatagramsRefused   = 80

	ctrStateRecords = 81
	ctrCarriedOut   = 82
	ctrCarriedIn    = 83
	ctrCarryRefused = 84

	ctrBacklogDrops = 133
)

// counters is how many there are.
const counters = 144

// card is the adapter as a driver author meets it: registers and memory.
type card struct {
	*T
	bus     guestdriver.Bus
	vectors bool
	waits   map[int]*vectorWait
	watched bool  // by innocent
	side    *ring // reads reports of the protocol checker
	memory  []guestdriver.DMA
}

// open opens the adapter, switches memory space and bus mastering on and
// waits until it is ready. Nothing runs yet.
func (t *T) open() *card {
	t.Helper()
	bus, err := t.Env.Open(t.ctx)
	check(t, "open the adapter", err)
	c := &card{T: t, bus: bus, waits: map[int]*vectorWait{}}
	t.Cleanup(func() {
		if err := bus.Close(); err != nil {
			t.Errorf("close the bus: %v", err)
		}
		for _, w := range c.waits {
			<-w.done
		}
	})
	c.master(true)
	c.until("STATUS.READY", func() bool { return c.read(regStatus)&1 != 0 })
	return c
}

// start is open and CONTROL.RUN.
func (t *T) start() *card {
	t.Helper()
	c := t.open()
	c.run()
	return c
}

func (c *card) run() {
	c.Helper()
	if !c.watched {
		c.watched = true
		c.innocent(c.bus, c.reportEntries)
	}
	c.write(regChecker, 1)
	c.write(regControl, 1)
	c.until("STATUS.RUNNING", func() bool { return c.read(regStatus)&2 != 0 })
}

// master switches bus mastering (Command bit 2), keeping memory space on.
func (c *card) master(on bool) {
	c.Helper()
	v, err := c.bus.ReadConfig(4, 2)
	check(c.T, "read Command", err)
	v |= 2
	if on {
		v |= 4
	} else {
		v &^= 4
	}
	check(c.T, "write Command", c.bus.WriteConfig(4, 2, v))
}

func (c *card) read(off uint32) uint32     { return c.bus.Read32(0, off) }
func (c *card) write(off uint32, v uint32) { c.bus.Write32(0, off, v) }

// counter reads a counter through STAT_SELECT.
func (c *card) counter(i uint32) uint64 {
	c.write(regStatSelect, i)
	lo := c.read(regStatLo)
	return uint64(c.read(regStatHi))<<32 | uint64(lo)
}

// moved returns how far a counter went while f ran.
func (c *card) moved(i uint32, f func()) uint64 {
	before := c.counter(i)
	f()
	return c.counter(i) - before
}

// alloc returns zeroed DMA memory that lives as long as the bus.
func (c *card) alloc(n int) guestdriver.DMA {
	c.Helper()
	m, err := c.bus.AllocDMA(n)
	check(c.T, "allocate DMA memory", err)
	c.memory = append(c.memory, m)
	return m
}

// at is DMA memory by its address, nil where there is none.
func (c *card) at(iova uint64, n int) []byte {
	for _, m := range c.memory {
		if off := iova - m.IOVA; off <= uint64(len(m.Bytes)) && uint64(len(m.Bytes))-off >= uint64(n) {
			return m.Bytes[off : off+uint64(n)]
		}
	}
	return nil
}

// enableVectors turns MSI-X on with all 33 vectors, once.
func (c *card) enableVectors() {
	c.Helper()
	if !c.vectors {
		check(c.T, "enable 33 vectors", c.bus.EnableVectors(33))
		c.vectors = true
	}
}

// vectorWait counts the interrupts of one vector.
type vectorWait struct {
	mu    sync.Mutex
	count int
	err   error
	tick  chan struct{} // holds a value after a change
	done  chan struct{}
}

// vector starts to listen on a vector and returns its count of interrupts.
func (c *card) vector(v int) *vectorWait {
	c.Helper()
	c.enableVectors()
	if w := c.waits[v]; w != nil {
		return w
	}
	w := &vectorWait{tick: make(chan struct{}, 1), done: make(chan struct{})}
	c.waits[v] = w
	go func() {
		defer close(w.done)
		for {
			err := c.bus.Wait(v)
			w.mu.Lock()
			if err == nil {
				w.count++
			}
			w.err = err
			w.mu.Unlock()
			select {
			case w.tick <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	return w
}

func (w *vectorWait) seen() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// atLeast waits for n interrupts in all.
func (w *vectorWait) atLeast(t *T, what string, n int) {
	t.Helper()
	t.until(what, func() bool { return w.seen() >= n })
}

// nothing is how long a test watches for what must not happen. Longer finds no
// more on a rung where the answer takes microseconds, and costs every run.
const nothing = 30 * time.Millisecond

// ctl builds a control buffer (SPEC.md §6).
type ctl struct {
	b      []byte
	tuples int
}

// tuple appends a tuple: bit 15 set, bits 14..0 attribute, 0, length, value.
func (k *ctl) tuple(set bool, attr uint16, value []byte) *ctl {
	if set {
		attr |= 0x8000
	}
	k.b = binary.LittleEndian.AppendUint16(k.b, attr)
	k.b = binary.LittleEndian.AppendUint16(k.b, 0)
	k.b = binary.LittleEndian.AppendUint32(k.b, uint32(len(value)))
	k.b = append(k.b, value...)
	for len(k.b)%8 != 0 {
		k.b = append(k.b, 0)
	}
	k.tuples++
	return k
}

func (k *ctl) get(attr uint16, room int) *ctl { return k.tuple(false, attr, make([]byte, room)) }

func (k *ctl) set(attr uint16, v uint64) *ctl {
	return k.tuple(true, attr, binary.LittleEndian.AppendUint64(nil, v))
}

// result is what the adapter stored into tuple n.
type result struct {
	Status uint16
	Length uint32
	Value  []byte
}

func (r result) scalar() uint64 {
	if len(r.Value) < 8 {
		return 0xbadbadbadbadbad0
	}
	return binary.LittleEndian.Uint64(r.Value)
}

// results walks the tuples by the rooms that were asked for, not by the
// lengths that the adapter stored.
func (k *ctl) results(buf []byte) []result {
	var rs []result
	for off, i := 0, 0; i < k.tuples; i++ {
		room := int(binary.LittleEndian.Uint32(k.b[off+4:]))
		rs = append(rs, result{
			Status: binary.LittleEndian.Uint16(buf[off+2:]),
			Length: binary.LittleEndian.Uint32(buf[off+4:]),
			Value:  buf[off+8 : off+8+room],
		})
		off += (8 + room + 7) &^ 7
	}
	return rs
}

// goal is a TARGET (SPEC.md §6.2).
type goal struct {
	proto   uint8 // 0: 6
	family  uint8 // 0: as the addresses, else 4
	count   uint16
	lport   uint16
	rport   uint16
	local   netip.Addr
	remote  netip.Addr
	limit   time.Duration
	backlog uint32
	zero    uint32 // the reserved field
	cookie  uint64
}

func (g goal) bytes() []byte {
	b := make([]byte, 64)
	if g.proto == 0 {
		g.proto = 6
	}
	if g.family == 0 {
		g.family = 4
		if g.remote.Is6() || g.local.Is6() {
			g.family = 6
		}
	}
	b[0], b[1] = g.proto, g.family
	binary.LittleEndian.PutUint16(b[2:], g.count)
	binary.LittleEndian.PutUint16(b[4:], g.lport)
	binary.LittleEndian.PutUint16(b[6:], g.rport)
	if g.local.IsValid() {
		copy(b[8:24], g.local.AsSlice())
	}
	if g.remote.IsValid() {
		copy(b[24:40], g.remote.AsSlice())
	}
	binary.LittleEndian.PutUint64(b[40:], uint64(g.limit))
	binary.LittleEndian.PutUint32(b[48:], g.backlog)
	binary.LittleEndian.PutUint32(b[52:], g.zero)
	binary.LittleEndian.PutUint64(b[56:], g.cookie)
	return b
}

// target appends a TARGET tuple: set, attribute 0x0001, 64 bytes.
func (k *ctl) target(g goal) *ctl { return k.tuple(true, 0x0001, g.bytes()) }

// to is a goal of one connection.
func to(a netip.AddrPort) goal { return goal{count: 1, remote: a.Addr(), rport: a.Port()} }

// addressOf reads an ADDRESS (SPEC.md §6.1).
func addressOf(b []byte) (netip.AddrPort, int) {
	if len(b) < 24 {
		return netip.AddrPort{}, -1
	}
	port := binary.LittleEndian.Uint16(b[2:])
	switch b[0] {
	case 4:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[8:12])), port), int(b[1])
	case 6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), port), int(b[1])
	}
	return netip.AddrPort{}, -1
}
