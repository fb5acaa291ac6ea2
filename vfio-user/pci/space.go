// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// Field is a field of configuration space. Its bits are read only but for
// those in Writable, which software sets as it likes, and those in W1C, which
// it clears by writing 1. Bits in neither read as they were last set by the
// device.
type Field struct {
	Offset   int // of a capability's field: from the start of the capability
	Width    int // bytes, 1 to 8
	Reset    uint64
	Writable uint64
	W1C      uint64
	Sticky   uint64 // bits that no reset changes (RWS, ROS, RW1CS)
	FLRKeeps uint64 // bits that a function-level reset leaves alone

	// Filter says what is stored where software's write would turn old into
	// v. It runs with the function's lock held and must look at nothing else.
	Filter func(old, v uint64) uint64
	// Read says what software reads where v is stored. No lock is held.
	Read func(v uint64) uint64
	// Written tells of a write that touched the field, and what it holds now.
	// No lock is held.
	Written func(v uint64)
}

// check finds mistakes in a declaration.
func (f *Field) check() error {
	if f.Width < 1 || f.Width > 8 {
		return fmt.Errorf("field at %#x: width %d", f.Offset, f.Width)
	}
	all := ^uint64(0) >> (64 - 8*f.Width)
	if (f.Reset|f.Writable|f.W1C|f.Sticky|f.FLRKeeps)&^all != 0 {
		return fmt.Errorf("field at %#x: bits beyond its %d bytes", f.Offset, f.Width)
	}
	if f.Writable&f.W1C != 0 {
		return fmt.Errorf("field at %#x: bits %#x both written and cleared by writing 1", f.Offset, f.Writable&f.W1C)
	}
	return nil
}

// touches reports whether an access covers a byte of f.
func (f *Field) touches(offset, n int) bool { return offset < f.Offset+f.Width && f.Offset < offset+n }

// load is f's value in bytes that start with byte base of the space.
func (f *Field) load(b []byte, base int) uint64 {
	var v [8]byte
	copy(v[:f.Width], b[f.Offset-base:])
	return binary.LittleEndian.Uint64(v[:])
}

// overlay puts those bytes of v, the value of f, into p that an access at
// offset covers.
func (f *Field) overlay(v uint64, offset int, p []byte) {
	for i := range f.Width {
		if at := f.Offset + i - offset; at >= 0 && at < len(p) {
			p[at] = byte(v >> (8 * i))
		}
	}
}

// space is configuration space as bytes. A byte of it belongs to one field at
// most; what belongs to none reads 0 and ignores writes.
type space struct {
	value, reset, writable, w1c, sticky, flr []byte

	used   []bool // belongs to the header, a capability, a field
	fields []bool // belongs to a field
	hooked []*Field
}

func newSpace(size int) *space {
	b := func() []byte { return make([]byte, size) }
	return &space{
		value: b(), reset: b(), writable: b(), w1c: b(), sticky: b(), flr: b(),
		used: make([]bool, size), fields: make([]bool, size),
	}
}

// size is that of the space in bytes.
func (s *space) size() int { return len(s.value) }

// free reports whether n bytes at offset lie in the space and are unused.
func (s *space) free(offset, n int) bool {
	return offset >= 0 && n > 0 && offset <= s.size()-n && !slices.Contains(s.used[offset:offset+n], true)
}

// use takes n free bytes.
func (s *space) use(offset, n int) {
	for i := range n {
		s.used[offset+i] = true
	}
}

// add puts a field in its place, whose Offset counts from base. It has to lie
// in the n bytes there.
func (s *space) add(f Field, base, n int) error {
	if err := f.check(); err != nil {
		return err
	}
	if f.Offset < 0 || f.Offset > n-f.Width {
		return fmt.Errorf("field at %#x: %d bytes leave the %d there are", f.Offset, f.Width, n)
	}
	f.Offset += base
	if slices.Contains(s.fields[f.Offset:f.Offset+f.Width], true) {
		return fmt.Errorf("field at %#x: overlaps another", f.Offset-base)
	}
	for i := range f.Width {
		at, shift := f.Offset+i, 8*i
		s.fields[at] = true
		s.value[at], s.reset[at] = byte(f.Reset>>shift), byte(f.Reset>>shift)
		s.writable[at], s.w1c[at] = byte(f.Writable>>shift), byte(f.W1C>>shift)
		s.sticky[at], s.flr[at] = byte(f.Sticky>>shift), byte(f.FLRKeeps>>shift)
	}
	if f.Filter != nil || f.Read != nil || f.Written != nil {
		s.hooked = append(s.hooked, &f)
	}
	return nil
}

// arrange puts fields with hooks in order of their places.
func (s *space) arrange() {
	slices.SortFunc(s.hooked, func(a, b *Field) int { return cmp.Compare(a.Offset, b.Offset) })
}

// touched returns the fields with hooks that an access covers.
func (s *space) touched(offset, n int) []*Field {
	i := 0
	for i < len(s.hooked) && s.hooked[i].Offset+s.hooked[i].Width <= offset {
		i++
	}
	j := i
	for j < len(s.hooked) && s.hooked[j].touches(offset, n) {
		j++
	}
	return s.hooked[i:j]
}

// write stores what the masks and filters let through. Every byte is stored
// before the first filter is asked.
func (s *space) write(offset int, p []byte) {
	fields := s.touched(offset, len(p))
	first, last := offset, offset+len(p)
	if len(fields) > 0 {
		first = min(first, fields[0].Offset)
		f := fields[len(fields)-1]
		last = max(last, f.Offset+f.Width)
	}
	old := slices.Clone(s.value[first:last])
	for i, v := range p {
		at := offset + i
		s.value[at] = s.value[at]&^s.writable[at]&^(v&s.w1c[at]) | v&s.writable[at]
	}
	for _, f := range fields {
		if f.Filter != nil {
			s.set(f.Offset, f.Width, f.Filter(f.load(old, first), f.load(s.value, 0)))
		}
	}
}

// get and set access the stored value, whatever the masks say.
func (s *space) get(offset, width int) uint64 {
	return (&Field{Offset: offset, Width: width}).load(s.value[:offset+width], 0)
}

func (s *space) set(offset, width int, v uint64) {
	(&Field{Offset: offset, Width: width}).overlay(v, offset, s.value[offset:offset+width])
}

// back gives all bits their reset values but those that this kind keeps.
func (s *space) back(kind ResetKind) {
	for i := range s.value {
		keep := s.sticky[i]
		if kind == ResetFunction {
			keep |= s.flr[i]
		}
		s.value[i] = s.value[i]&keep | s.reset[i]&^keep
	}
}
