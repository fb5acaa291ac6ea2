// SPDX-License-Identifier: Apache-2.0

package pci

import "fmt"

// Extended capability ids (PCI Code and ID Assignment).
const (
	idAER  = 0x0001
	idDSN  = 0x0003
	idVSEC = 0x000b
	idTPH  = 0x0017
)

// AER is the advanced error reporting capability, version 2 (PCI Express Base
// 3.0 §7.10). The device sets status bits by [Function.Store].
type AER struct{}

func (AER) layout() (layout, error) {
	const (
		uncorrectable = 0x005ff030 // all that an endpoint can have
		internal      = 1 << 22    // uncorrectable internal error: masked at first
		severe        = 0x00462030 // data link, surprise down, flow control, overflow, malformed, internal
		correctable   = 0x000031c1
		advisory      = 1 << 13 // advisory non-fatal error: masked at first
	)
	rws := func(offset int, reset, bits uint64) Field {
		return Field{Offset: offset, Width: 4, Reset: reset, Writable: bits, Sticky: bits}
	}
	l := layout{id: idAER, extended: true, version: 2, size: 0x48, fields: []Field{
		{Offset: 0x04, Width: 4, W1C: uncorrectable, Sticky: uncorrectable},
		rws(0x08, internal, uncorrectable),
		rws(0x0c, severe, uncorrectable),
		{Offset: 0x10, Width: 4, W1C: correctable, Sticky: correctable},
		rws(0x14, advisory, correctable),
		{Offset: 0x18, Width: 4, Sticky: 0x1f}, // first error pointer; no ECRC
	}}
	for i := 0x1c; i < l.size; i += 4 { // header log, TLP prefix log
		if i < 0x2c || i >= 0x38 { // between them are a root port's registers
			l.fields = append(l.fields, Field{Offset: i, Width: 4, Sticky: 0xffffffff})
		}
	}
	return l, nil
}

// DSN is the device serial number capability (PCI Express Base 3.0 §7.12): an
// EUI-64, the extension's last byte first in memory.
type DSN struct{ Serial uint64 }

func (c DSN) layout() (layout, error) {
	return layout{id: idDSN, extended: true, version: 1, size: 12, fields: []Field{
		{Offset: 4, Width: 8, Reset: c.Serial},
	}}, nil
}

// TPH is the transaction processing hints requester capability (PCI Express
// Base 3.0 §7.26). Its table of steering tags, if any, is in the capability.
type TPH struct {
	Vector, Device bool // the modes it has beside that without steering tags
	Tags           int  // entries of the table, up to 2048
}

func (c TPH) layout() (layout, error) {
	l := layout{id: idTPH, extended: true, version: 1, size: 12 + (c.Tags*2+3)&^3}
	if c.Tags < 0 || c.Tags > (sizeExpress-firstExtended)/2-6 || c.Tags == 0 && (c.Vector || c.Device) {
		return l, fmt.Errorf("%v: %d steering tags", &l, c.Tags)
	}
	modes := uint64(1) // without steering tags
	if c.Vector {
		modes |= 1 << 1
	}
	if c.Device {
		modes |= 1 << 2
	}
	capabilities, control := modes, uint64(1<<8) // one bit enables the requester
	if c.Tags > 0 {
		capabilities |= 1<<9 | uint64(c.Tags-1)<<16 // table in the capability
		control |= 7                                // mode
	}
	l.fields = []Field{
		{Offset: 4, Width: 4, Reset: capabilities},
		{Offset: 8, Width: 4, Writable: control, Filter: func(old, v uint64) uint64 {
			if m := v & 7; m > 2 || modes>>m&1 == 0 {
				v = v&^7 | old&7 // a mode that it does not have
			}
			return v
		}},
	}
	for i := range c.Tags {
		l.fields = append(l.fields, Field{Offset: 12 + 2*i, Width: 2, Writable: 0x00ff})
	}
	return l, nil
}

// VSEC is a vendor-specific extended capability (PCI Express Base 3.0 §7.18).
// Its own header is at offset 4, its fields come after that.
type VSEC struct {
	ID       uint16
	Revision uint8 // 4 bits
	Size     int   // bytes, both headers' 8 included
	Fields   []Field
}

func (c VSEC) layout() (layout, error) {
	l := layout{id: idVSEC, extended: true, version: 1, several: true, size: c.Size}
	if c.Size < 8 || c.Size > sizeExpress-firstExtended || c.Revision > 15 {
		return l, fmt.Errorf("%v: %d bytes, revision %d", &l, c.Size, c.Revision)
	}
	header := uint64(c.ID) | uint64(c.Revision)<<16 | uint64(c.Size)<<20
	l.fields = append([]Field{{Offset: 4, Width: 4, Reset: header}}, c.Fields...)
	return l, nil
}
