// SPDX-License-Identifier: Apache-2.0

package firmwaretest

import (
	"fmt"
	"time"

	"toebox/firmware"
	"toebox/vdev/abi"
)

// Patience bounds every wait of a [Host].
const Patience = 60 * time.Second

// Host is a driver of one queue. It asks to be told of every response and waits
// for interrupts.
type Host struct {
	Firmware *firmware.Firmware
	Chip     *Chip
	Queue    int
	Config   firmware.QueueConfig

	in, out  abi.Index
	received []abi.Fields
	space    []abi.Fields // the memory that received starts in when it was empty
	lastTag  uint32
}

// NewHost lays out tables of 1<<log2 slots for queue q.
func NewHost(f *firmware.Firmware, c *Chip, q int, log2 uint8) *Host {
	size := abi.DescriptorSize << log2
	h := &Host{Firmware: f, Chip: c, Queue: q, Config: firmware.QueueConfig{
		In: c.Alloc(size, 64), Out: c.Alloc(size, 64), Event: c.Alloc(abi.EventBlockSize, 64),
		InLog2: log2, OutLog2: log2, Vector: q + 1,
	}}
	h.Clear()
	return h
}

// Clear gives the tables the contents that create asks for.
func (h *Host) Clear() {
	in := h.Chip.Bytes(h.Config.In, abi.DescriptorSize<<h.Config.InLog2)
	clear(in)
	out := h.Chip.Bytes(h.Config.Out, abi.DescriptorSize<<h.Config.OutLog2)
	for i := 0; i < len(out); i += abi.DescriptorSize {
		abi.StoreWord(out[i:], abi.WordOwner)
	}
	clear(h.Chip.Bytes(h.Config.Event, abi.EventBlockSize))
	h.SetEvent(abi.EventOutPublished, abi.EventAlways)
	h.in, h.out, h.received, h.space = 0, 0, nil, nil
}

// Create creates the queue.
func (h *Host) Create() abi.Status {
	return h.Firmware.Command(h.Queue, abi.QueueCreate, h.Config)
}

// SetEvent stores one of the host's event words.
func (h *Host) SetEvent(off uint64, w abi.EventWord) {
	abi.StoreWord(h.Chip.Bytes(h.Config.Event+off, 4), uint32(w))
}

// Event loads an event word.
func (h *Host) Event(off uint64) abi.EventWord {
	return abi.EventWord(abi.LoadWord(h.Chip.Bytes(h.Config.Event+off, 4)))
}

// Tag returns a tag that was not used before.
func (h *Host) Tag() uint32 {
	h.lastTag++
	return h.lastTag
}

// Room reports whether the next input slot is free.
func (h *Host) Room() bool { return abi.LoadWord(h.inSlot())&abi.WordOwner == 0 }

func (h *Host) inSlot() []byte {
	slot := h.in.Slot(uint(h.Config.InLog2))
	return h.Chip.Bytes(h.Config.In+uint64(slot)*abi.DescriptorSize, abi.DescriptorSize)
}

// Publish writes a request without ringing; there must be room.
func (h *Host) Publish(f abi.Fields) {
	d := abi.Descriptor(h.inSlot())
	d.EncodeBody(&f)
	abi.StoreWord(d, f.Word(true))
	h.in = h.in.Add(1)
}

// Index is the producer index of the input table.
func (h *Host) Index() abi.Index { return h.in }

// Ring rings IN_DOORBELL if the event word asks for it since index old.
func (h *Host) Ring(old abi.Index) {
	if h.Event(abi.EventInPublished).Wants(old, h.in) {
		h.Firmware.Doorbell(h.Queue, h.in)
	}
}

// Post publishes requests, waiting for room, and rings as asked.
func (h *Host) Post(fs ...abi.Fields) error {
	for _, f := range fs {
		err := h.Wait("room in the input table", func() bool {
			h.Poll()
			return h.Room()
		})
		if err != nil {
			return err
		}
		old := h.in
		h.Publish(f)
		h.Ring(old)
	}
	return nil
}

// Poll takes what responses there are, hands the slots back and rings as asked.
func (h *Host) Poll() {
	old := h.out
	h.consume(1 << h.Config.OutLog2) // what comes meanwhile is for the next time
	if h.Event(abi.EventOutFreed).Wants(old, h.out) {
		h.Firmware.DoorbellOut(h.Queue, h.out)
	}
}

// consume takes at most n responses and reports whether there was one. The slots
// are handed back from the newest to the oldest: an adapter that looks meanwhile
// finds none of them free, or all.
func (h *Host) consume(n int) bool {
	old := h.out
	for ; n > 0; n-- {
		b := h.outSlot(h.out)
		if abi.LoadWord(b)&abi.WordOwner != 0 {
			break
		}
		var c [abi.DescriptorSize]byte
		copy(c[:], b)
		if len(h.received) == 0 {
			h.received = h.space[:0]
		}
		h.received = append(h.received, abi.Descriptor(c[:]).Decode())
		if cap(h.received) > cap(h.space) {
			h.space = h.received
		}
		h.out = h.out.Add(1)
	}
	for i := h.out.Sub(old); i > 0; i-- {
		b := h.outSlot(old.Add(int(i) - 1))
		abi.StoreWord(b, abi.LoadWord(b)|abi.WordOwner)
	}
	return h.out != old
}

func (h *Host) outSlot(i abi.Index) []byte {
	slot := i.Slot(uint(h.Config.OutLog2))
	return h.Chip.Bytes(h.Config.Out+uint64(slot)*abi.DescriptorSize, abi.DescriptorSize)
}

// Next returns the next response.
func (h *Host) Next() (abi.Fields, error) {
	err := h.Wait("a response", func() bool {
		if len(h.received) == 0 {
			h.Poll()
		}
		return len(h.received) > 0
	})
	if err != nil {
		return abi.Fields{}, err
	}
	f := h.received[0]
	h.received = h.received[1:]
	return f, nil
}

// Pending returns the responses that are there already, without waiting.
func (h *Host) Pending() []abi.Fields {
	h.Poll()
	all := h.received
	h.received, h.space = nil, nil
	return all
}

// State waits until the queue is in a state.
func (h *Host) State(s abi.QueueState) error {
	return h.Wait("a queue state", func() bool { return h.Firmware.QueueStatus(h.Queue).State == s })
}

// Wait looks at ready after each interrupt, and now and then without, since a
// state changes without one.
func (h *Host) Wait(what string, ready func() bool) error {
	limit := time.NewTimer(Patience)
	defer limit.Stop()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !ready() {
		select {
		case <-h.Chip.Wake():
		case <-look.C:
		case <-limit.C:
			return fmt.Errorf("firmwaretest: no %s after %v", what, Patience)
		}
	}
	return nil
}

// Take takes one response, if there is one, and rings as asked.
func (h *Host) Take() (abi.Fields, bool) {
	if len(h.received) == 0 {
		old := h.out
		if !h.consume(1) {
			return abi.Fields{}, false
		}
		if h.Event(abi.EventOutFreed).Wants(old, h.out) {
			h.Firmware.DoorbellOut(h.Queue, h.out)
		}
	}
	f := h.received[0]
	h.received = h.received[1:]
	return f, true
}

// Untaken are the requests that the adapter has not taken.
func (h *Host) Untaken() []abi.Fields {
	var list []abi.Fields
	for i := h.Firmware.QueueStatus(h.Queue).InIndex; i != h.in; i = i.Add(1) {
		slot := i.Slot(uint(h.Config.InLog2))
		b := h.Chip.Bytes(h.Config.In+uint64(slot)*abi.DescriptorSize, abi.DescriptorSize)
		list = append(list, abi.Descriptor(b).Decode())
	}
	return list
}
