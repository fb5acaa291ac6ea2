// SPDX-License-Identifier: Apache-2.0

package vfiouser

// mapping is one DMA map and at the same time a node of the tree that holds
// them all: a treap (ordered by iova, a heap by random priority) that is never
// changed once published. An update copies the path to what it changes and
// shares the rest, so that it costs O(log n) with 60,000 maps live, and readers
// of the tree before need no lock.
type mapping struct {
	iova, last uint64    // first and last byte, so that a map may end at 2^64
	off        uint64    // of iova in file
	file       *hostFile // nil: reached by messages
	prot       Prot

	pri         uint64
	left, right *mapping
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

// floor returns the mapping with the highest start not above a.
func (m *mapping) floor(a uint64) *mapping {
	var best *mapping
	for m != nil {
		if m.iova <= a {
			best, m = m, m.right
		} else {
			m = m.left
		}
	}
	return best
}

// find returns the mapping that holds a.
func (m *mapping) find(a uint64) *mapping {
	if f := m.floor(a); f != nil && a <= f.last {
		return f
	}
	return nil
}

// overlaps returns a mapping that shares a byte with [first, last].
func (m *mapping) overlaps(first, last uint64) *mapping {
	if f := m.floor(last); f != nil && f.last >= first {
		return f
	}
	return nil
}

// insert returns the tree with n, whose range is free, added.
func (m *mapping) insert(n *mapping) *mapping {
	if m == nil {
		return n
	}
	if n.pri > m.pri {
		n.left, n.right = m.split(n.iova)
		return n
	}
	c := *m
	if n.iova < m.iova {
		c.left = m.left.insert(n)
	} else {
		c.right = m.right.insert(n)
	}
	return &c
}

// split returns the mappings that start below a and the others.
func (m *mapping) split(a uint64) (below, rest *mapping) {
	if m == nil {
		return nil, nil
	}
	c := *m
	if m.iova < a {
		c.right, rest = m.right.split(a)
		return &c, rest
	}
	below, c.left = m.left.split(a)
	return below, &c
}

// join returns the union of two trees, all of m below all of o.
func (m *mapping) join(o *mapping) *mapping {
	switch {
	case m == nil:
		return o
	case o == nil:
		return m
	case m.pri > o.pri:
		c := *m
		c.right = m.right.join(o)
		return &c
	}
	c := *o
	c.left = m.join(o.left)
	return &c
}

// cut returns the tree without the mappings that start in [first, last], and
// those.
func (m *mapping) cut(first, last uint64) (rest, out *mapping) {
	below, rest := m.split(first)
	if last == ^uint64(0) {
		return below, rest
	}
	out, above := rest.split(last + 1)
	return below.join(above), out
}

// each calls f for the mappings in order.
func (m *mapping) each(f func(*mapping)) {
	if m != nil {
		m.left.each(f)
		f(m)
		m.right.each(f)
	}
}
