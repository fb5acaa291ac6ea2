// SPDX-License-Identifier: Apache-2.0

package port

import (
	"encoding/binary"
	"time"
)

// The pcapng format, draft-ietf-opsawg-pcapng. A file is a series of blocks:
// type, total length, body, options, total length again; everything padded to
// 32 bits. Numbers are in the byte order of the section header, here little
// endian.
const (
	blockSection   = 0x0a0d0d0a // Section Header Block, section 4.1
	blockInterface = 1          // Interface Description Block, section 4.2
	blockStats     = 5          // Interface Statistics Block, section 4.6
	blockPacket    = 6          // Enhanced Packet Block, section 4.3

	byteOrderMagic  = 0x1a2b3c4d
	linkTypeEther   = 1
	unknownLength   = ^uint64(0)
	nanosecondPower = 9 // if_tsresol: 10^-9 s
)

// Option codes; those below 2 are common to all blocks.
const (
	optionEnd     = 0
	optionComment = 1

	sectionHardware = 2
	sectionOS       = 3
	sectionApp      = 4

	interfaceName       = 2
	interfaceResolution = 9

	packetFlags = 2
	packetDrops = 4 // packets lost between the one before and this one

	statsStart    = 2
	statsEnd      = 3
	statsReceived = 4
	statsDropped  = 5
)

// Directions of a frame as the adapter sees it, with the values of the low two
// bits of epb_flags (section 4.3.1).
type Direction uint32

// Directions.
const (
	Inbound  Direction = 1
	Outbound Direction = 2
)

// ng appends pcapng blocks to a buffer.
type ng struct{ b []byte }

// begin starts a block and returns where it starts, for end.
func (w *ng) begin(kind uint32) int {
	at := len(w.b)
	w.b = binary.LittleEndian.AppendUint32(w.b, kind)
	w.b = binary.LittleEndian.AppendUint32(w.b, 0) // set by end
	return at
}

func (w *ng) end(at int) {
	n := uint32(len(w.b) - at + 4)
	binary.LittleEndian.PutUint32(w.b[at+4:], n)
	w.b = binary.LittleEndian.AppendUint32(w.b, n)
}

func (w *ng) u16(v uint16) { w.b = binary.LittleEndian.AppendUint16(w.b, v) }
func (w *ng) u32(v uint32) { w.b = binary.LittleEndian.AppendUint32(w.b, v) }
func (w *ng) u64(v uint64) { w.b = binary.LittleEndian.AppendUint64(w.b, v) }

func (w *ng) pad() {
	for len(w.b)%4 != 0 { // the buffer starts at a block
		w.b = append(w.b, 0)
	}
}

// option appends one option; an empty one is left out.
func (w *ng) option(code uint16, v string) {
	if v == "" {
		return
	}
	v = v[:min(len(v), 0xffff)]
	w.u16(code)
	w.u16(uint16(len(v)))
	w.b = append(w.b, v...)
	w.pad()
}

func (w *ng) option64(code uint16, v uint64) {
	w.u16(code)
	w.u16(8)
	w.u64(v)
}

// time appends a timestamp in nanoseconds: high half first, as in section 4.3.
func (w *ng) time(t time.Time) {
	v := uint64(t.UnixNano())
	w.u32(uint32(v >> 32))
	w.u32(uint32(v))
}

func (w *ng) optionTime(code uint16, t time.Time) {
	w.u16(code)
	w.u16(8)
	w.time(t)
}

func (w *ng) optionEnd() { w.u32(optionEnd) }

// header appends the section header and the one interface's description.
func (w *ng) header(o *CaptureOptions) {
	at := w.begin(blockSection)
	w.u32(byteOrderMagic)
	w.u16(1) // version 1.0
	w.u16(0)
	w.u64(unknownLength)
	w.option(sectionHardware, o.Hardware)
	w.option(sectionOS, o.OS)
	w.option(sectionApp, o.Application)
	w.optionEnd()
	w.end(at)

	at = w.begin(blockInterface)
	w.u16(linkTypeEther)
	w.u16(0)
	w.u32(uint32(o.SnapLen))
	w.option(interfaceName, o.Name)
	w.option(interfaceResolution, string([]byte{nanosecondPower}))
	w.optionEnd()
	w.end(at)
}

// statistics appends what became of the interface's frames.
func (w *ng) statistics(start, now time.Time, frames, missed uint64) {
	at := w.begin(blockStats)
	w.u32(0) // interface
	w.time(now)
	w.optionTime(statsStart, start)
	w.optionTime(statsEnd, now)
	w.option64(statsReceived, frames)
	w.option64(statsDropped, missed)
	w.optionEnd()
	w.end(at)
}
