// SPDX-License-Identifier: Apache-2.0

package vfiouser

import "math/bits"

// mapping is one DMA map.
type mapping struct {
	iova, last uint64    // first and last byte, so that a map may end at 2^64
	off        uint64    // of iova in file
	file       *hostFile // nil: reached by messages
	prot       Prot
	serial     uint64 // of the map; it grows from one to the next
}

func (m *mapping) size() uint64 { return m.last - m.iova + 1 }

// sameAs reports whether two DMA maps say the same.
func (m *mapping) sameAs(o *mapping) bool {
	return m.iova == o.iova && m.last == o.last && m.off == o.off && m.file == o.file && m.prot == o.prot
}

// continues reports whether m lies behind o both for the device and in the
// host's memory.
func (m *mapping) continues(o *mapping) bool {
	return m.iova-1 == o.last && m.iova != 0 && m.file == o.file && m.off == o.off+o.size()
}

// pageSlots is how many entries a page of the tree has at most. A look-up among
// a thousand maps reads two pages, among a million four.
const pageSlots = 64

// page is a page of the tree that holds all mappings, and its root stands for
// the tree: a B+ tree, ordered by iova, of which nothing is changed once it is
// published. An update copies the pages on the path to what it changes and
// shares the rest, so that it costs as good as the same with 60,000 maps live as
// with ten, and readers of the tree before need no lock. The nil page is the
// empty tree.
type page struct {
	first []uint64  // iova of each mapping, or the lowest in each kid
	maps  []mapping // of a leaf
	kids  []*page   // of any other page; all leaves are equally deep
}

// upTo returns how many entries start at a or below. It has no branch on what it
// compares: such branches cannot be predicted, and they were most of a look-up.
func (p *page) upTo(a uint64) int {
	first, at := p.first, 0
	for n := len(first); n > 0; {
		half := (n + 1) / 2
		_, below := bits.Sub64(a, first[at+half-1], 0) // 1 if it starts above a
		at += half & (int(below) - 1)
		n -= half
	}
	return at
}

// floor returns the mapping with the highest start not above a.
func (p *page) floor(a uint64) *mapping {
	for p != nil {
		i := p.upTo(a) - 1
		switch {
		case i < 0:
			return nil
		case p.kids == nil:
			return &p.maps[i]
		}
		p = p.kids[i]
	}
	return nil
}

// ceil returns the mapping with the lowest start not below a.
func (p *page) ceil(a uint64) *mapping {
	if p == nil {
		return nil
	}
	i := 0
	if a > 0 {
		i = p.upTo(a - 1)
	}
	if p.kids == nil {
		if i == len(p.maps) {
			return nil
		}
		return &p.maps[i]
	}
	for i = max(i, 1) - 1; i < len(p.kids); i++ {
		if m := p.kids[i].ceil(a); m != nil {
			return m
		}
	}
	return nil
}

// find returns the mapping that holds a.
func (p *page) find(a uint64) *mapping {
	if f := p.floor(a); f != nil && a <= f.last {
		return f
	}
	return nil
}

// overlaps returns a mapping that shares a byte with [first, last].
func (p *page) overlaps(first, last uint64) *mapping {
	if f := p.floor(last); f != nil && f.last >= first {
		return f
	}
	return nil
}

// insert returns the tree with m, whose range is free, added.
func (p *page) insert(m mapping) *page {
	if p == nil {
		return &page{first: []uint64{m.iova}, maps: []mapping{m}}
	}
	low, high := p.add(m)
	if high == nil {
		return low
	}
	return parent(low, high)
}

// add returns the page with m added, in two halves if it became too large.
func (p *page) add(m mapping) (low, high *page) {
	i := p.upTo(m.iova)
	if p.kids == nil {
		return (&page{first: splice(p.first, i, i, m.iova), maps: splice(p.maps, i, i, m)}).halve(i)
	}
	i = max(i, 1) - 1 // what starts below all goes to the lowest kid
	c := &page{first: splice(p.first, i, i+1), kids: splice(p.kids, i, i+1)}
	low, high = p.kids[i].add(m)
	c.first, c.kids = splice(c.first, i, i, low.first[0]), splice(c.kids, i, i, low)
	if high == nil {
		return c, nil
	}
	i++
	c.first, c.kids = splice(c.first, i, i, high.first[0]), splice(c.kids, i, i, high)
	return c.halve(i)
}

// halve returns the page, or two if it is too large; i is what was added last.
// Where maps come in ascending order the lower page stays full.
func (p *page) halve(i int) (low, high *page) {
	n := len(p.first)
	if n <= pageSlots {
		return p, nil
	}
	at := n / 2
	if i == n-1 {
		at = i
	}
	return p.part(0, at), p.part(at, n)
}

// part returns entries [i, j) of a page.
func (p *page) part(i, j int) *page {
	c := &page{first: splice(p.first[i:j], 0, 0)}
	if p.kids == nil {
		c.maps = splice(p.maps[i:j], 0, 0)
	} else {
		c.kids = splice(p.kids[i:j], 0, 0)
	}
	return c
}

// cut returns the tree without the mappings that start in [first, last], of
// which it tells in order.
func (p *page) cut(first, last uint64, out func(*mapping)) *page {
	if p == nil {
		return nil
	}
	p = p.without(first, last, out)
	for p != nil && len(p.kids) == 1 {
		p = p.kids[0]
	}
	return p
}

// without is cut for a page that is not the root.
func (p *page) without(first, last uint64, out func(*mapping)) *page {
	i, j := 0, p.upTo(last)
	if first > 0 {
		i = p.upTo(first - 1)
	}
	if p.kids == nil {
		for k := i; k < j; k++ {
			out(&p.maps[k])
		}
		switch j - i {
		case 0:
			return p
		case len(p.maps):
			return nil
		}
		return &page{first: splice(p.first, i, j), maps: splice(p.maps, i, j)}
	}
	i = max(i, 1) - 1 // the kid that starts below may reach into the range
	var c page
	for k, kid := range p.kids {
		if k >= i && k < j {
			kid = kid.without(first, last, out)
		}
		c.push(kid)
	}
	if len(c.kids) == 0 {
		return nil
	}
	return &c
}

// push adds a kid behind all others, or joins it with the last one where one of
// the two has become small, so that pages without much in them do not stay.
func (p *page) push(kid *page) {
	if kid == nil {
		return
	}
	if n := len(p.kids); n > 0 {
		last := p.kids[n-1]
		a, b := len(last.first), len(kid.first)
		if min(a, b) < pageSlots/4 && a+b <= pageSlots {
			p.kids[n-1] = &page{first: splice(last.first, a, a, kid.first...), maps: splice(last.maps, len(last.maps), len(last.maps), kid.maps...),
				kids: splice(last.kids, len(last.kids), len(last.kids), kid.kids...)}
			return
		}
	}
	p.first, p.kids = append(p.first, kid.first[0]), append(p.kids, kid)
}

// each calls f for the mappings in order.
func (p *page) each(f func(*mapping)) {
	if p == nil {
		return
	}
	for i := range p.maps {
		f(&p.maps[i])
	}
	for _, kid := range p.kids {
		kid.each(f)
	}
}

// parent returns a page above two.
func parent(low, high *page) *page {
	return &page{first: []uint64{low.first[0], high.first[0]}, kids: []*page{low, high}}
}

// splice returns a copy of s in which with takes the place of [i, j). It is nil
// if nothing is left.
func splice[T any](s []T, i, j int, with ...T) []T {
	n := len(s) - (j - i) + len(with)
	if n == 0 {
		return nil
	}
	r := make([]T, 0, n)
	return append(append(append(r, s[:i]...), with...), s[j:]...)
}
