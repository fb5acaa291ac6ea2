// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"syscall"
	"time"
)

// Model is the oracle for maps and unmaps, for tests of whole sessions. They map
// one file of size bytes, by mmap and by file I/O.
type Model struct {
	m    model
	size uint64
}

// NewModel returns a model that has no map.
func NewModel(size uint64) *Model {
	const fileIO = 1
	return &Model{model{gran: pageSize, most: defaultMaxDMAMaps, anywhere: map[int]bool{fileIO: true}}, size}
}

// Map returns what a map must be answered. File is 0 for one by mmap, 1 for one by
// file I/O, -1 for one without a file.
func (o *Model) Map(iova, size, off uint64, file int, prot Prot) syscall.Errno {
	return o.m.add(iova, size, off, file, prot, o.size)
}

// Unmap returns what an unmap must be answered, and the size.
func (o *Model) Unmap(addr, size uint64, all bool) (uint64, syscall.Errno) {
	return o.m.remove(addr, size, all)
}

// Len returns how many maps there are.
func (o *Model) Len() int { return len(o.m.maps) }

// WriteEvents makes s signal interrupts as where the kernel cannot do it for us. It
// comes before the first eventfd is assigned.
func (s *Server) WriteEvents() { s.irqs.signals.once.Do(func() {}) }

// RefuseReads has the kernel refuse s the reads by which it signals interrupts, from
// now on. No Trigger may be under way.
func (s *Server) RefuseReads() { s.irqs.signals.aio = 1 }

// SetTimeout sets how long a request waits from now on. No request may be under
// way.
func (c *Client) SetTimeout(d time.Duration) { c.cfg.Timeout = d }

// Waiting returns how many requests wait for their reply.
func (c *Client) Waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting)
}
