// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// Where things are in configuration space (PCI Local Bus 3.0 §6.1, PCI Express
// Base 3.0 §7.2).
const (
	sizeConventional = 256
	sizeExpress      = 4096

	headerSize    = 0x40
	firstExtended = 0x100
)

// Capability is a capability of the function: one of [PM], [Express], [MSI],
// [MSIX], [Vendor], [Subsystem], [AER], [DSN], [TPH], [VSEC], [Custom], or one
// of these placed by [At].
type Capability interface {
	layout() (layout, error)
}

// layout is a capability as bytes. The header's two or four bytes are among
// size, but not among fields.
type layout struct {
	id       uint16
	extended bool
	version  uint8 // of an extended capability
	several  bool  // a function may have more than one
	at       int   // 0: the first place with room
	size     int
	fields   []Field
	acts     Capability // the capability itself, if the function has to know it
}

func (l *layout) String() string {
	if l.extended {
		return fmt.Sprintf("extended capability %#04x", l.id)
	}
	return fmt.Sprintf("capability %#02x", l.id)
}

// bounds is the part of configuration space that the capability can be in.
func (l *layout) bounds() (first, last int) {
	if l.extended {
		return firstExtended, sizeExpress
	}
	return headerSize, sizeConventional
}

// At places a capability at an offset, a multiple of 4. Others are placed where
// there is room, in order of their declaration.
func At(offset int, c Capability) Capability { return placed{c, offset} }

type placed struct {
	Capability
	offset int
}

func (p placed) layout() (layout, error) {
	if p.Capability == nil {
		return layout{}, errors.New("no capability")
	}
	l, err := p.Capability.layout()
	l.at = p.offset
	if first, last := l.bounds(); err == nil && (p.offset < first || p.offset > last-l.size || p.offset%4 != 0) {
		err = fmt.Errorf("%v of %d bytes cannot be at %#x", &l, l.size, p.offset)
	}
	return l, err
}

// layouts asks each capability for its layout.
func layouts(caps []Capability) ([]*layout, error) {
	var ls []*layout
	for _, c := range caps {
		if c == nil {
			return nil, errors.New("no capability")
		}
		l, err := c.layout()
		if err != nil {
			return nil, err
		}
		if !l.several && slices.ContainsFunc(ls, func(o *layout) bool { return o.id == l.id && o.extended == l.extended }) {
			return nil, fmt.Errorf("%v: twice", &l)
		}
		ls = append(ls, &l)
	}
	return ls, nil
}

// place gives every capability its place, those first that must have a certain
// one, and chains them in the order of ls.
func (s *space) place(ls []*layout) error {
	order := slices.Clone(ls)
	slices.SortStableFunc(order, func(a, b *layout) int { return cmp.Compare(min(b.at, 1), min(a.at, 1)) })
	for _, l := range order {
		if l.at == 0 {
			first, last := l.bounds()
			last = min(last, s.size()) - l.size
			for l.at = first; l.at <= last && !s.free(l.at, l.size); l.at += 4 {
			}
			if l.at > last {
				return fmt.Errorf("%v: no room for %d bytes", l, l.size)
			}
		}
		if !s.free(l.at, l.size) {
			return fmt.Errorf("%v at %#x: the place is taken", l, l.at)
		}
		s.use(l.at, l.size)
	}
	var plain, extended []*layout
	for _, l := range ls {
		if l.extended {
			extended = append(extended, l)
		} else {
			plain = append(plain, l)
		}
	}
	// The list of extended capabilities has no pointer to its first: that is
	// at 0x100, or there is none.
	slices.SortStableFunc(extended, func(a, b *layout) int {
		return cmp.Compare(min(a.at, firstExtended+1), min(b.at, firstExtended+1))
	})
	if len(extended) > 0 && extended[0].at != firstExtended {
		return fmt.Errorf("no extended capability at %#x", firstExtended)
	}
	next := func(of []*layout, i int) uint64 {
		if i+1 < len(of) {
			return uint64(of[i+1].at)
		}
		return 0
	}
	link := Field{Offset: 0x34, Width: 1} // capabilities pointer
	if len(plain) > 0 {
		link.Reset = uint64(plain[0].at)
	}
	if err := s.add(link, 0, headerSize); err != nil {
		return err
	}
	for i, l := range plain {
		if err := s.fill(l, Field{Width: 2, Reset: uint64(l.id) | next(plain, i)<<8}); err != nil {
			return err
		}
	}
	for i, l := range extended {
		if err := s.fill(l, Field{Width: 4, Reset: uint64(l.id) | uint64(l.version)<<16 | next(extended, i)<<20}); err != nil {
			return err
		}
	}
	return nil
}

// fill adds the fields of a capability that has its place.
func (s *space) fill(l *layout, header Field) error {
	for _, f := range append([]Field{header}, l.fields...) {
		if err := s.add(f, l.at, l.size); err != nil {
			return fmt.Errorf("%v: %w", l, err)
		}
	}
	return nil
}

// Custom is a capability that this package has no type for.
type Custom struct {
	ID       uint16
	Extended bool
	Version  uint8 // of an extended capability, 1 to 15
	Size     int   // bytes, the header's 2 or 4 included
	Fields   []Field
}

func (c Custom) layout() (layout, error) {
	l := layout{id: c.ID, extended: c.Extended, version: c.Version, several: true, size: c.Size, fields: c.Fields}
	switch {
	case c.Extended && (c.Version < 1 || c.Version > 15 || c.Size < 4 || c.Size > sizeExpress-firstExtended),
		!c.Extended && (c.ID > 0xff || c.Version != 0 || c.Size < 2 || c.Size > sizeConventional-headerSize):
		return l, fmt.Errorf("%v: version %d, %d bytes", &l, c.Version, c.Size)
	case !c.Extended && slices.Contains([]uint16{idPM, idMSI, idExpress, idMSIX}, c.ID):
		return l, fmt.Errorf("%v has a type of its own", &l)
	}
	return l, nil
}
