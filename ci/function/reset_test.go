// SPDX-License-Identifier: Apache-2.0

package function

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"toebox/vdev/abi"
)

// queue is where a queue of 64 slots each way lies.
type queue struct {
	m  *machine
	at int // input table; output table and event block follow

	in, out int // the host's indexes, free running
}

const (
	slots     = 64
	tableSize = 32 * slots
	queueSize = 2*tableSize + 256

	unknown  = 0xf8       // byte 0: owner host, type 30, which is none
	rejected = 0x0020017c // word 0: owner adapter, type 31, FINAL, BAD_TYPE
)

// create makes queue 0 of fresh tables, which interrupts at each response.
func (m *machine) create(at int) *queue {
	m.t.Helper()
	q := &queue{m: m, at: at}
	m.fill(at, queueSize, 0)
	for s := range slots {
		m.ram[at+tableSize+32*s] = 0x80
	}
	binary.LittleEndian.PutUint32(m.ram[at+2*tableSize+0x40:], 2<<30)
	m.set(0x0010, 1) // RUN
	m.until("RUNNING", func() bool { return m.get(0x0014)&2 != 0 })
	m.set(0x1008, uint32(at))
	m.set(0x100c, 0)
	m.set(0x1010, uint32(at+tableSize))
	m.set(0x1014, 0)
	m.set(0x1018, uint32(at+2*tableSize))
	m.set(0x101c, 0)
	m.set(0x1020, 6<<8|6)
	m.set(0x1000, 1)
	m.until("the queue", func() bool { return m.get(0x1004) == 1 })
	return q
}

// post puts a request of a type that is none into the next slot, if that is free.
func (q *queue) post() bool {
	slot := q.m.ram[q.at+32*(q.in%slots):][:32]
	if abi.LoadWord(slot)&0x80 != 0 {
		return false
	}
	clear(slot[4:])
	binary.LittleEndian.PutUint32(slot[4:], uint32(q.in)+1)
	abi.StoreWord(slot, unknown)
	q.in++
	return true
}

// take takes the next response, if there is one.
func (q *queue) take() (word, tag uint32, ok bool) {
	slot := q.m.ram[q.at+tableSize+32*(q.out%slots):][:32]
	if word = abi.LoadWord(slot); word&0x80 != 0 {
		return 0, 0, false
	}
	tag = binary.LittleEndian.Uint32(slot[4:])
	abi.StoreWord(slot, 0x80)
	q.out++
	return word, tag, true
}

// use has the queue answer requests, with interrupts.
func (q *queue) use() {
	m := q.m
	m.t.Helper()
	for i := range 10 {
		q.post()
		m.set(0x4000, uint32(q.in))
		var word, tag uint32
		m.until("a response", func() (ok bool) { m.config(0x00, 4); word, tag, ok = q.take(); return ok })
		if word != rejected || tag != uint32(i+1) {
			m.t.Errorf("request %d: response %#x with tag %d", i+1, word, tag)
		}
		m.delivered(1)
	}
}

// rearm gives every slot of old tables to whoever would still use them:
// requests to take, room for responses.
func (m *machine) rearm(at int) { m.fill(at, queueSize, unknown) }

// untouched checks that nobody has.
func (m *machine) untouched(what string, at int) {
	m.t.Helper()
	if !bytes.Equal(m.ram[at:at+queueSize], bytes.Repeat([]byte{unknown}, queueSize)) {
		m.t.Errorf("%s: the adapter has written to its old tables", what)
	}
}

// fresh checks that the adapter is as after power-on, but for its counters.
func (m *machine) fresh(what string) {
	m.t.Helper()
	for _, r := range []struct{ offset, want uint32 }{
		{0x0010, 0}, {0x0018, 1}, {0x0020, 1}, {0x0024, 0}, {0x0028, 0}, {0x002c, 0}, {0x0080, 0},
		{0x0090, 0}, {0x0098, 0}, {0x009c, 0}, {0x00a4, testIdle}, {0x00a8, 0}, {0x00c0, 0}, {0x00e0, 0},
		{0x1004, 0}, {0x1008, 0}, {0x1020, 0}, {0x1024, 1}, {0x1028, 0}, {0x102c, 0},
	} {
		m.want(what, uint64(r.offset), r.want)
	}
}

// dirty changes what a reset has to put back.
func (m *machine) dirty() {
	m.t.Helper()
	m.set(0x0024, 0x3e)
	m.set(0x0080, 0xdeadbeef)
	m.set(0x00c0, 1)
	m.set(0x00e0, 1)
	m.dma(testWrite, target, 4096, 5)
}

// TestReset has a queue at work, resets and looks at what is left.
func TestReset(t *testing.T) {
	for _, c := range []struct {
		name     string
		reset    func(m *machine)
		function bool // configuration space too
	}{
		{"function-level reset", func(m *machine) {
			control := m.capability(0x10) + 8
			m.setConfig(control, 2, m.config(control, 2)|1<<15)
			if got := m.config(control, 2); got&(1<<15) != 0 {
				m.t.Errorf("device control %#x: the bit does not clear itself", got)
			}
		}, true},
		{"register reset", func(m *machine) { m.set(0x0010, 1<<31) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := start(t)
			m.enableMSIX()
			q := m.create(0x300000)
			q.use()
			m.dirty()
			m.fill(cookies, 64*vectors, 0)
			resets := m.counter(48)

			c.reset(m)
			control := m.capability(0x11) + 2
			if c.function {
				if got := m.config(0x04, 2); got != 0 {
					t.Errorf("Command %#x", got)
				}
				m.place()
				m.want("STATUS: MSI-X is off", 0x0014, 0x51)
				m.setConfig(control, 2, 0x8000)
			}
			// The driver that did not ask for it learns of it by vector 0.
			m.delivered(0)
			m.want("STATUS", 0x0014, 0x71)
			m.fresh(c.name)
			if got := m.counter(48) - resets; got != 1 {
				t.Errorf("%d resets counted, want 1", got)
			}

			m.rearm(q.at)
			m.set(0x4000, 64)
			m.create(0x310000).use()
			m.untouched(c.name, q.at)
			m.quiet(c.name)
		})
	}
}

// load is a driver that knows of no reset.
type load struct {
	m        *machine
	q        *queue
	stop     chan struct{}
	progress chan struct{} // one token a round, while somebody takes them
	done     chan error
	answers  int
}

// begin lets the driver loose.
func (l *load) begin() {
	go func() { l.done <- l.run() }()
}

// wait waits for the driver to do a round.
func (l *load) wait() {
	l.m.t.Helper()
	select {
	case <-l.progress:
	case err := <-l.done:
		l.m.t.Fatalf("the driver ended: %v", err)
	case <-time.After(patience):
		l.m.t.Fatal("the driver does not get on")
	}
}

// run does all at once what keeps the adapter busy: requests, responses,
// doorbells, interrupts, transfers by file and by message. It ends some rounds
// after it was told to.
func (l *load) run() error {
	late := 0
	for i := 0; late < 20; i++ {
		for range 8 {
			l.q.post()
		}
		for {
			word, _, ok := l.q.take()
			if !ok {
				break
			}
			if word == rejected {
				l.answers++
			}
		}
		addr := uint32(vram)
		if i%4 == 0 {
			addr = target
		}
		for _, w := range []struct{ offset, v uint32 }{
			{0x4000, uint32(l.q.in)}, {0x4004, uint32(l.q.out)}, {0x0084, uint32(i % vectors)},
			{0x0090, addr}, {0x0098, 65536}, {0x009c, uint32(i)}, {0x00a0, testWrite},
		} {
			if err := l.m.Write32(bar0+uint64(w.offset), w.v); err != nil {
				return err
			}
		}
		if _, err := l.m.Read32(bar0 + 0x1028); err != nil {
			return err
		}
		select {
		case l.progress <- struct{}{}:
		default:
		}
		select {
		case <-l.stop:
			late++
		default:
		}
	}
	return nil
}

// TestSystemReset resets the whole machine while the adapter works, by way of
// the device reset of vfio-user.
func TestSystemReset(t *testing.T) {
	const rounds = 8
	m := start(t)
	places := [2]int{0x300000, 0x310000}
	m.enableMSIX()
	q := m.create(places[0])
	for round := range rounds {
		resets := m.dev.Stats().Counters["resets_function"]
		m.set(0x0080, 0xdeadbeef)
		l := &load{m: m, q: q, stop: make(chan struct{}), progress: make(chan struct{}), done: make(chan error, 1)}
		l.begin()
		for range 5 + 3*round {
			l.wait()
		}
		began := time.Now()
		err := m.mon.execute("system_reset", "RESET")
		took := time.Since(began)
		close(l.stop)
		if err := <-l.done; err != nil {
			t.Fatalf("round %d: the driver: %v", round, err)
		}
		m.check(err)
		// One that waited for a transfer by messages, which QEMU answers after
		// the reset, would not have come to an end.
		t.Logf("round %d: the reset took %v", round, took)
		if l.answers == 0 {
			t.Errorf("round %d: the queue did not work", round)
		}
		if got := m.dev.Stats().Counters["resets_function"] - resets; got == 0 {
			t.Errorf("round %d: the adapter was not reset", round)
		}
		for _, r := range []struct {
			offset uint8
			want   uint32
		}{{0x04, 0}, {0x10, 4}, {0x14, 0}, {0x18, 4}, {0x1c, 0}} {
			if got := m.config(r.offset, 2); got != r.want {
				t.Errorf("round %d: configuration register %#x reads %#x, want %#x", round, r.offset, got, r.want)
			}
		}
		if got := m.config(m.capability(0x11)+2, 2); got != 33-1 {
			t.Errorf("round %d: MSI-X control %#x", round, got)
		}

		m.rearm(q.at)
		m.fill(target, 65536, unknown)
		m.place()
		m.fresh("after a system reset")
		m.want("STATUS", 0x0014, 0x51)
		m.enableMSIX()
		old := q.at
		q = m.create(places[(round+1)%2])
		q.use()
		m.untouched("after a system reset", old)
		if !bytes.Equal(m.ram[target:target+65536], bytes.Repeat([]byte{unknown}, 65536)) {
			t.Errorf("round %d: an old transfer has gone on", round)
		}
		m.quiet("after a system reset")
		if s, _ := m.dma(testWrite, target, 65536, 1); s != testDone {
			t.Errorf("round %d: transfer: status %d", round, s)
		}
	}
}
