// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"fmt"
	"slices"
	"sort"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxFiles bounds the file descriptors kept of a client's memory.
	maxFiles = 4096
	// maxMaps is the most DMA maps that are kept.
	maxMaps = 1 << 20
	// mapsPage is how many maps are moved at most to make room for one.
	mapsPage = 512
)

// fileKey tells files apart: descriptors with equal keys reach the same bytes
// with the same rights.
type fileKey struct {
	dev, ino uint64
	mode     int
	single   uint64 // not zero: dev and ino say nothing
}

// file is a file of the client's memory. One descriptor of it is kept, however
// many maps there are.
type file struct {
	key  fileKey
	fd   int
	refs int
}

// files are those that something refers to.
type files struct {
	byKey   map[fileKey]*file
	singles uint64
}

// take takes over fd and returns its file, with one more reference.
func (t *files) take(fd int) (*file, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	fl := 0
	if err == nil {
		fl, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("file of a map: %w", err)
	}
	key := fileKey{dev: st.Dev, ino: st.Ino, mode: fl & unix.O_ACCMODE}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		t.singles++
		key.single = t.singles
	}
	if f := t.byKey[key]; f != nil {
		f.refs++
		unix.Close(fd)
		return f, nil
	}
	if len(t.byKey) >= maxFiles {
		unix.Close(fd)
		return nil, fmt.Errorf("%d files: %w", maxFiles, syscall.ENOSPC)
	}
	f := &file{key: key, fd: fd, refs: 1}
	t.byKey[key] = f
	return f, nil
}

// drop gives a reference back; f may be nil.
func (t *files) drop(f *file) {
	if f == nil {
		return
	}
	if f.refs--; f.refs == 0 {
		delete(t.byKey, f.key)
		unix.Close(f.fd)
	}
}

// dmaMap is a DMA map of the client, with a reference to its file.
type dmaMap struct {
	flags      uint32
	addr, last uint64
	offset     uint64
	file       *file // nil: reached by message
}

// append appends the request that makes the map.
func (m dmaMap) append(b []byte) []byte {
	b = words(b, dmaMapSize, m.flags)
	for _, v := range [...]uint64{m.offset, m.addr, m.last - m.addr + 1} {
		b = nativeAppend64(b, v)
	}
	return b
}

// maps are the DMA maps of the client, which do not overlap, by address. They
// are kept in pages, so that a change moves no more than one page's maps.
type maps struct {
	pages [][]dmaMap // none is empty
	count int
}

// seek returns where the first map is that does not end before addr.
func (s *maps) seek(addr uint64) (page, at int) {
	page = sort.Search(len(s.pages), func(i int) bool { p := s.pages[i]; return p[len(p)-1].last >= addr })
	if page < len(s.pages) {
		p := s.pages[page]
		at = sort.Search(len(p), func(i int) bool { return p[i].last >= addr })
	}
	return page, at
}

// find returns the first map that reaches into [addr, last], or nil.
func (s *maps) find(addr, last uint64) *dmaMap {
	page, at := s.seek(addr)
	if page < len(s.pages) && s.pages[page][at].addr <= last {
		return &s.pages[page][at]
	}
	return nil
}

// bisects reports whether an edge of [addr, last] cuts a map in two.
func (s *maps) bisects(addr, last uint64) bool {
	for _, edge := range [2]uint64{addr, last} {
		if m := s.find(edge, edge); m != nil && (m.addr < addr || m.last > last) {
			return true
		}
	}
	return false
}

// insert adds m, which overlaps none.
func (s *maps) insert(m dmaMap) {
	s.count++
	page, at := s.seek(m.addr)
	if page == len(s.pages) {
		if page == 0 || len(s.pages[page-1]) >= mapsPage {
			s.pages = append(s.pages, append(make([]dmaMap, 0, mapsPage), m))
			return
		}
		page--
		at = len(s.pages[page])
	}
	p := s.pages[page]
	if len(p) >= mapsPage {
		half := append(make([]dmaMap, 0, mapsPage), p[mapsPage/2:]...)
		clear(p[mapsPage/2:])
		p = p[:mapsPage/2]
		s.pages[page] = p
		s.pages = slices.Insert(s.pages, page+1, half)
		if at > len(p) {
			at -= len(p)
			page++
		}
	}
	s.pages[page] = slices.Insert(s.pages[page], at, m)
}

// remove takes out the maps that lie inside [addr, last] and calls f for each.
func (s *maps) remove(addr, last uint64, f func(dmaMap)) {
	first, at := s.seek(addr)
	page := first
	for ; page < len(s.pages); page++ {
		p := s.pages[page]
		keep := p[:at]
		for i, m := range p[at:] {
			if m.addr > last {
				keep = append(keep, p[at+i:]...)
				break
			}
			if m.addr >= addr && m.last <= last {
				s.count--
				f(m)
			} else {
				keep = append(keep, m)
			}
		}
		done := p[len(p)-1].addr > last
		clear(p[len(keep):])
		s.pages[page], at = keep, 0
		if done {
			page++
			break
		}
	}
	for i := page - 1; i >= first; i-- {
		if len(s.pages[i]) > 0 {
			continue
		}
		end := i + 1
		for i > first && len(s.pages[i-1]) == 0 {
			i--
		}
		s.pages = slices.Delete(s.pages, i, end)
	}
}

// all returns the maps in order.
func (s *maps) all() []dmaMap {
	all := make([]dmaMap, 0, s.count)
	for _, p := range s.pages {
		all = append(all, p...)
	}
	return all
}

// memory is what the client has mapped.
type memory struct {
	maps  maps
	files files
}

// parseMap judges a request for a map as type1 v2 does, short of what needs the
// table. fds stay the caller's.
func parseMap(p []byte, fds int) (m dmaMap, err error) {
	if len(p) < dmaMapSize || native32(p, 0) < dmaMapSize {
		return m, fmt.Errorf("map in %d bytes: %w", len(p), syscall.EINVAL)
	}
	m = dmaMap{flags: native32(p, 4), offset: native64(p, 8), addr: native64(p, 16)}
	size := native64(p, 24)
	m.last = m.addr + size - 1
	switch {
	case size == 0 || m.last < m.addr || (m.addr|size)&(pageSize-1) != 0:
		err = fmt.Errorf("map of %#x bytes at %#x: %w", size, m.addr, syscall.EINVAL)
	case m.flags&^mapKnown != 0 || m.flags&(mapRead|mapWrite) == 0 || fds > 1:
		err = fmt.Errorf("map flags %#x with %d file descriptors: %w", m.flags, fds, syscall.EINVAL)
	}
	return m, err
}

// add makes m one of the maps and takes over its reference, whatever the
// result. An identical map that exists is success.
func (s *memory) add(m dmaMap) error {
	old := s.maps.find(m.addr, m.last)
	switch {
	case old == nil && s.maps.count >= maxMaps:
		s.files.drop(m.file)
		return fmt.Errorf("%d maps: %w", maxMaps, syscall.ENOSPC)
	case old == nil:
		s.maps.insert(m)
		return nil
	}
	same := *old == m
	s.files.drop(m.file)
	if !same {
		return fmt.Errorf("map of [%#x, %#x] over [%#x, %#x]: %w", m.addr, m.last, old.addr, old.last, syscall.EEXIST)
	}
	return nil
}

// unmap is a request to take maps away.
type unmap struct {
	flags      uint32
	addr, last uint64 // everything, for unmapAll
}

func parseUnmap(p []byte) (u unmap, err error) {
	if len(p) < dmaUnmapSize || native32(p, 0) < dmaUnmapSize {
		return u, fmt.Errorf("unmap in %d bytes: %w", len(p), syscall.EINVAL)
	}
	u = unmap{flags: native32(p, 4), addr: native64(p, 8)}
	size := native64(p, 16)
	u.last = u.addr + size - 1
	switch {
	case u.flags&^(unmapDirty|unmapAll) != 0:
		err = fmt.Errorf("unmap flags %#x: %w", u.flags, syscall.EINVAL)
	case u.flags&unmapAll != 0:
		if u.addr != 0 || size != 0 {
			err = fmt.Errorf("unmap all with a range: %w", syscall.EINVAL)
		}
		u.last = ^uint64(0)
	case size == 0 || u.last < u.addr || (u.addr|size)&(pageSize-1) != 0:
		err = fmt.Errorf("unmap of %#x bytes at %#x: %w", size, u.addr, syscall.EINVAL)
	}
	return u, err
}

// append appends the request, or with size the reply to it.
func (u unmap) append(b []byte, size uint64) []byte {
	b = words(b, dmaUnmapSize, u.flags)
	b = nativeAppend64(b, u.addr)
	return nativeAppend64(b, size)
}

// request appends the request.
func (u unmap) request(b []byte) []byte {
	if u.flags&unmapAll != 0 {
		return u.append(b, 0)
	}
	return u.append(b, u.last-u.addr+1)
}

// remove takes away the maps inside u and returns how many bytes they had.
func (s *memory) remove(u unmap) (bytes uint64) {
	s.maps.remove(u.addr, u.last, func(m dmaMap) {
		if bytes += m.last - m.addr + 1; bytes == 0 {
			bytes-- // 2^64 does not fit the field
		}
		s.files.drop(m.file)
	})
	return bytes
}

// unmap does in the server's stead what u asks.
func (s *memory) unmap(u unmap) (bytes uint64, err error) {
	switch {
	case u.flags&unmapDirty != 0:
		return 0, fmt.Errorf("dirty bitmap without a server: %w", syscall.ENOTSUP)
	case s.maps.bisects(u.addr, u.last):
		return 0, fmt.Errorf("unmap of [%#x, %#x] cuts a map: %w", u.addr, u.last, syscall.EINVAL)
	}
	return s.remove(u), nil
}
