// SPDX-License-Identifier: Apache-2.0

package abi

import (
	"fmt"
	"regexp"
	"slices"
	"testing"
)

// This file proves the hand-over of descriptors and the event words (SPEC.md
// §4.2, §4.4) by walking all interleavings of a producer and a consumer on a
// small table: no slot is taken before it is published, none is overwritten
// before it was copied, and from every state the work can still be finished,
// which is to say that no wake-up is ever lost. Memory is sequentially
// consistent, or has a store buffer per processor as x86 does (TSO), where a
// full barrier waits for the buffer to drain. Index arithmetic and event words
// are the package's own, with indexes that wrap on the way.
//
// Both tables follow the same protocol: in the input table the host produces
// and 1 means published, in the output table the adapter does and 0 means it.

// modelStart is the index of the first item: the second or third one wraps.
const modelStart = Index(IndexMask - 1)

// model is one walk.
type model struct {
	slots     int // a power of two, at most 4
	items     int
	batch     int   // slots published at once, at most
	run       int   // slots taken at once, at most
	published uint8 // owner bit of a published slot
	tso       bool
	reverse   bool    // a batch's owner bits are stored last slot first
	quiet     bool    // on waking up a side stores "do not tell me"
	modes     []uint8 // what a side may ask for before it sleeps; mode 0 polls instead
	broken    string  // a mutation of the protocol
}

// Addresses of the model's memory.
const (
	ownerAt          = 0
	bodyAt           = 4
	askPublished     = 8 // event word of the consumer
	askFreed         = 9 // event word of the producer
	modelMemory      = 10
	storeBuffer      = 5
	producer         = 0
	consumer         = 1
	eventModeShift   = 6
	eventOffsetShift = 8 // an asked index is its distance from modelStart-eventOffsetShift
)

// Program counters. Both sides walk them from top to bottom.
const (
	pcLook    uint8 = iota // at the owner bits of the next slots
	pcAsk                  // store the event word
	pcAskWait              // full barrier
	pcAgain                // look once more
	pcSleep                // until told
	pcAwake                // store "do not tell me", if quiet
	pcBody                 // producer: fill; consumer: copy
	pcOwner                // publish; hand back
	pcWait                 // full barrier
	pcEvent                // load the other side's event word
	pcTell                 // doorbell or interrupt
	pcDone
)

// side is one processor.
type side struct {
	pc, i, n uint8 // i of n slots are done in this step
	done     uint8 // items published, or handed back
	wants    bool  // what pcEvent found
	told     bool
	stores   [storeBuffer][2]uint8 // address, value, oldest first
	pending  uint8
}

// modelState is everything there is; it is a map key.
type modelState struct {
	mem    [modelMemory]uint8
	sides  [2]side
	copied uint8 // items that the consumer has copied
}

func (m *model) load(s *modelState, who int, at uint8) uint8 {
	p := &s.sides[who]
	for k := int(p.pending) - 1; k >= 0; k-- {
		if p.stores[k][0] == at {
			return p.stores[k][1]
		}
	}
	return s.mem[at]
}

// store reports false when the buffer has no room: the step must wait.
func (m *model) store(s *modelState, who int, at, v uint8) bool {
	p := &s.sides[who]
	if !m.tso {
		s.mem[at] = v
		return true
	}
	if p.pending == storeBuffer {
		return false
	}
	p.stores[p.pending] = [2]uint8{at, v}
	p.pending++
	return true
}

// flush moves the oldest store to memory.
func (p *side) flush(mem *[modelMemory]uint8) {
	mem[p.stores[0][0]] = p.stores[0][1]
	copy(p.stores[:], p.stores[1:])
	p.pending--
	p.stores[p.pending] = [2]uint8{}
}

func (m *model) slot(item int) uint8 {
	return uint8(modelStart.Add(item).Slot(map[int]uint{2: 1, 4: 2}[m.slots]))
}

// encodeEvent packs an event word into 8 bits.
func encodeEvent(mode uint8, item int) uint8 {
	return mode<<eventModeShift | uint8(item+eventOffsetShift)
}

func decodeEvent(v uint8) EventWord {
	at := modelStart.Add(int(v&(1<<eventModeShift-1)) - eventOffsetShift)
	return EventWord(uint32(v>>eventModeShift)<<30 | uint32(at))
}

// mine reports whether the slot of an item is who's to act on.
func (m *model) mine(s *modelState, who, item int) bool {
	published := m.load(s, who, ownerAt+m.slot(item)) == m.published
	return published == (who == consumer)
}

// next appends the states that one step leads to.
func (m *model) next(out []modelState, s modelState) ([]modelState, error) {
	for who := range s.sides {
		if s.sides[who].pending > 0 {
			n := s
			n.sides[who].flush(&n.mem)
			out = append(out, n)
		}
		var err error
		if out, err = m.step(out, s, who); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// step appends what a step of one side leads to.
func (m *model) step(out []modelState, s modelState, who int) ([]modelState, error) {
	p := &s.sides[who]
	limit := min([2]int{m.batch, m.run}[who], m.slots, m.items-int(p.done))
	event, other := uint8(askFreed), uint8(askPublished)
	if who == consumer {
		event, other = other, event
	}
	first := int(p.done) // the item that comes next
	switch p.pc {
	case pcLook:
		switch {
		case limit == 0:
			p.pc = pcDone
		case int(p.n) < limit && m.broken == "take behind a gap" && who == consumer:
			if m.mine(&s, who, first+limit-1) {
				p.n, p.pc = uint8(limit), pcBody
			} else if m.mine(&s, who, first) {
				p.n, p.pc = 1, pcBody
			} else {
				p.pc = pcAsk
			}
		case int(p.n) < limit && m.mine(&s, who, first+int(p.n)):
			p.n++
		case p.n == 0:
			p.pc = pcAsk
		default:
			// What was found so far may be less than could be: a smaller
			// batch is among the behaviours.
			for n := uint8(1); n < p.n; n++ {
				less := s
				less.sides[who].n, less.sides[who].pc = n, m.after(who, pcLook)
				out = append(out, less)
			}
			p.pc = m.after(who, pcLook)
		}
	case pcAsk:
		// The slot waited for: published under its own index, or handed
		// back under the index it had one round before.
		item := first
		if who == producer {
			item -= m.slots
		}
		if m.broken == "ask for the slot after" {
			item++
		}
		for _, mode := range m.modes {
			n := s
			if mode == 0 {
				n.sides[who].pc = pcLook
			} else if m.store(&n, who, event, encodeEvent(mode, item)) {
				n.sides[who].pc = pcAskWait
			} else {
				continue
			}
			out = append(out, n)
		}
		return out, nil
	case pcAskWait:
		if p.pending > 0 && m.broken != "no barrier before looking again" {
			return out, nil
		}
		if p.pc = pcAgain; m.broken == "no second look" {
			p.pc = pcSleep
		}
	case pcAgain:
		if p.pc = pcSleep; m.mine(&s, who, first) {
			p.pc = pcAwake
		}
	case pcSleep:
		if !p.told {
			return out, nil
		}
		p.told, p.pc = false, pcAwake
	case pcAwake:
		if m.quiet && !m.store(&s, who, event, 0) {
			return out, nil
		}
		p.pc = pcLook
	case pcBody:
		item := first + int(p.i)
		at := bodyAt + m.slot(item)
		switch {
		case who == consumer:
			if got := m.load(&s, who, at); got != uint8(item+1) {
				return nil, fmt.Errorf("item %d was taken as %d", item+1, got)
			}
			s.copied = max(s.copied, uint8(item+1))
		case item-m.slots >= int(s.copied):
			return nil, fmt.Errorf("item %d overwrites one that was not copied", item+1)
		case !m.store(&s, who, at, uint8(item+1)):
			return out, nil
		}
		if p.i++; p.i == p.n {
			p.i, p.pc = 0, m.after(who, pcBody)
		}
	case pcOwner:
		k := p.i
		if m.reverse {
			k = p.n - 1 - p.i
		}
		v := m.published
		if who == consumer {
			v ^= 1
		}
		if !m.store(&s, who, ownerAt+m.slot(first+int(k)), v) {
			return out, nil
		}
		if p.i++; p.i == p.n {
			p.i, p.pc = 0, m.after(who, pcOwner)
		}
	case pcWait:
		if p.pending > 0 && m.broken != "no barrier before the event word" {
			return out, nil
		}
		p.pc = pcEvent
	case pcEvent:
		before, after := modelStart.Add(first), modelStart.Add(first+int(p.n))
		p.wants = decodeEvent(m.load(&s, who, other)).Wants(before, after)
		p.pc = pcTell
	case pcTell:
		if p.wants {
			s.sides[1-who].told = true
		}
		p.done += p.n
		p.n, p.wants, p.pc = 0, false, pcLook
	case pcDone:
		return out, nil
	}
	return append(out, s), nil
}

// after is the step behind pcLook, pcBody or pcOwner: contents before owner
// bits, unless a mutation turns them round.
func (m *model) after(who int, pc uint8) uint8 {
	order := []uint8{pcLook, pcBody, pcOwner, pcWait}
	if m.broken == "owner before body" && who == producer || m.broken == "hand back before copying" && who == consumer {
		order[1], order[2] = order[2], order[1]
	}
	return order[slices.Index(order, pc)+1]
}

// walk visits all states and returns how many there are.
func (m *model) walk() (int, error) {
	var first modelState
	for i := range m.slots {
		first.mem[ownerAt+i] = m.published ^ 1
	}
	index := map[modelState]int{first: 0}
	states := []modelState{first}
	var from [][]int32 // predecessors
	from = append(from, nil)
	var finished []int
	var buf []modelState
	for at := 0; at < len(states); at++ {
		s := states[at]
		if s.sides[producer].pc == pcDone && s.sides[consumer].pc == pcDone {
			finished = append(finished, at)
			continue
		}
		var err error
		if buf, err = m.next(buf[:0], s); err != nil {
			return len(states), err
		}
		for _, n := range buf {
			k, ok := index[n]
			if !ok {
				k = len(states)
				index[n] = k
				states = append(states, n)
				from = append(from, nil)
			}
			from[k] = append(from[k], int32(at))
		}
	}
	// Everything must be able to finish.
	alive := make([]bool, len(states))
	for len(finished) > 0 {
		at := finished[len(finished)-1]
		finished = finished[:len(finished)-1]
		if alive[at] {
			continue
		}
		alive[at] = true
		for _, k := range from[at] {
			if !alive[k] {
				finished = append(finished, int(k))
			}
		}
	}
	for at, ok := range alive {
		if !ok {
			s := &states[at]
			return len(states), fmt.Errorf("a wake-up was lost: %d published, %d handed back, producer at %d, consumer at %d",
				s.sides[producer].done, s.sides[consumer].done, s.sides[producer].pc, s.sides[consumer].pc)
		}
	}
	return len(states), nil
}

func (m *model) String() string {
	return fmt.Sprintf("slots %d batch %d run %d published %d tso %v reverse %v quiet %v modes %v",
		m.slots, m.batch, m.run, m.published, m.tso, m.reverse, m.quiet, m.modes)
}

// models are the walks that the proof consists of.
func models() []model {
	var all []model
	for _, tso := range []bool{false, true} {
		for _, modes := range [][]uint8{{1}, {2}, {3}, {0}, {0, 1, 2}} {
			for _, quiet := range []bool{false, true} {
				for _, shape := range []struct{ slots, items, batch, run int }{{2, 5, 1, 1}, {2, 5, 2, 2}, {4, 6, 2, 2}, {4, 6, 1, 4}} {
					if shape.slots == 4 && (testing.Short() || !quiet) {
						continue // they add states, not behaviours
					}
					all = append(all, model{
						slots: shape.slots, items: shape.items, batch: shape.batch, run: shape.run,
						published: uint8(len(all) & 1), tso: tso, reverse: shape.batch > 1 && quiet, quiet: quiet, modes: modes,
					})
				}
			}
		}
	}
	return all
}

// TestHandOver walks the protocol as it is.
func TestHandOver(t *testing.T) {
	total := 0
	for _, m := range models() {
		own := m.published
		for _, published := range []uint8{0, 1} { // output table, input table
			if m.slots == 4 && published != own {
				continue // the large walks take one of them each
			}
			m.published = published
			n, err := m.walk()
			if err != nil {
				t.Errorf("%v: %v", &m, err)
			}
			total += n
		}
	}
	t.Logf("%d states", total)
}

// TestHandOverMutations breaks the protocol in each of its points: the walk
// must notice.
func TestHandOverMutations(t *testing.T) {
	for _, c := range []struct {
		broken string
		tso    bool // whether it takes a store buffer to notice
		want   string
	}{
		{"no second look", false, "a wake-up was lost"},
		{"no barrier before looking again", true, "a wake-up was lost"},
		{"no barrier before the event word", true, "a wake-up was lost"},
		{"ask for the slot after", false, "a wake-up was lost"},
		{"owner before body", false, "was taken as"},
		{"hand back before copying", false, "overwrites|was taken as"},
		{"take behind a gap", false, "was taken as"},
	} {
		for _, tso := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, tso %v", c.broken, tso), func(t *testing.T) {
				m := model{
					slots: 2, items: 5, batch: 2, run: 2, published: 1, tso: tso, reverse: true,
					modes: []uint8{1}, broken: c.broken,
				}
				_, err := m.walk()
				switch {
				case c.tso && !tso:
					if err != nil {
						t.Errorf("without a store buffer: %v", err)
					}
				case err == nil || !regexp.MustCompile(c.want).MatchString(err.Error()):
					t.Errorf("noticed %v, want %s", err, c.want)
				}
			})
		}
	}
}
