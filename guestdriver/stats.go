// SPDX-License-Identifier: Apache-2.0

package guestdriver

import "sync/atomic"

// badResponses counts what the adapter should not have written.
type badResponses struct {
	tag    atomic.Uint64 // of no outstanding request
	kind   atomic.Uint64 // of a type that does not answer its request
	final  atomic.Uint64 // without FINAL
	conn   atomic.Uint64 // of another connection, or of none
	length atomic.Uint64 // beyond the buffer, or not where it went on
}

// hostCounters count what the driver itself does.
type hostCounters struct {
	copied  atomic.Uint64 // payload bytes copied between DMA memory and callers
	direct  atomic.Uint64 // payload bytes that callers read or wrote in DMA memory
	events  atomic.Uint64
	resets  atomic.Uint64
	missed  atomic.Uint64
	refused atomic.Uint64
	lost    atomic.Uint64

	carried, uncarried, takenOver atomic.Uint64

	mistakes atomic.Uint64

	directReads, bufferedReads, directWrites, bufferedWrites atomic.Uint64

	peeks, peeked, redirects, redirected, skipped atomic.Uint64

	combined, combinedBuffers, broadcasts, broadcastSends atomic.Uint64

	groupBuffers, groupLends, groupDrops atomic.Uint64
	virtuals, fragments                  atomic.Uint64
}

// Stats are the driver's own counters.
type Stats struct {
	Requests, Responses       uint64 // descriptors each way
	DoorbellsIn, DoorbellsOut uint64
	Interrupts                uint64 // of queues
	Events                    uint64 // interrupts of the adapter's own vector
	Polls                     uint64 // looks at the output tables
	HostCopyBytes             uint64 // payload copied by the host (MM01)
	DirectBytes               uint64 // payload that callers handled in DMA memory without a copy
	MissedInterrupts          uint64 // responses found by the watch, not by an interrupt
	Mistakes                  uint64 // found by Options.Debug
	DirectReads               uint64 // calls of Read that took bytes where they stand in registered memory
	BufferedReads             uint64 // ... by a copy
	DirectWrites              uint64 // calls of Write, or pieces of WriteBuffers, that went without a copy
	BufferedWrites            uint64 // ... by a copy
	Peeks                     uint64 // peeks that showed something
	PeekedBytes               uint64 // copied by the adapter for that
	Redirects                 uint64 // redirections posted
	RedirectedBytes           uint64 // that went to another connection's buffers
	SkippedBytes              uint64 // of streams, before buffers, peeks and redirections
	Combined                  uint64 // responses that reported several buffers (RX12)
	CombinedBuffers           uint64 // ... and these
	Broadcasts                uint64 // buffers sent on the connections of a group (MM04)
	BroadcastSends            uint64 // ... once for each connection
	GroupBuffers              uint64 // buffers of receive groups that completed with bytes (MM04)
	GroupLends                uint64 // ... that were filled for connections which are no members
	GroupDrops                uint64 // datagrams that came into one
	VirtualBuffers            uint64 // posted (MM06)
	Fragments                 uint64 // buffers given back before they were full, as permitted
	Resets                    uint64 // times that the driver started over
	Refused                   uint64 // arrivals reset for want of room
	BadTags                   uint64 // responses dropped: unknown or repeated tag
	BadTypes                  uint64 // ... wrong type
	BadFinals                 uint64 // ... not final
	BadConns                  uint64 // ... wrong connection
	BadLengths                uint64 // ... beyond the buffer
	LostBuffers               uint64 // buffers that a connection's end did not give back
	Memory                    uint64 // bytes of DMA memory in use for payload
	Outstanding               uint64 // requests without a terminal response
	Connections               uint64
	CarriedOver               uint64 // times that a connection went on after a stop
	CarryFailed               uint64 // ... left the adapter and did not go on
	TakenOver                 uint64 // times that another adapter of the group took over
}

// Stats returns the driver's counters.
func (a *Adapter) Stats() Stats {
	s := Stats{
		Events: a.host.events.Load(), HostCopyBytes: a.host.copied.Load(), DirectBytes: a.host.direct.Load(),
		MissedInterrupts: a.host.missed.Load(), Resets: a.host.resets.Load(), Refused: a.host.refused.Load(),
		BadTags: a.bad.tag.Load(), BadTypes: a.bad.kind.Load(), BadFinals: a.bad.final.Load(),
		BadConns: a.bad.conn.Load(), BadLengths: a.bad.length.Load(), LostBuffers: a.host.lost.Load(),
		CarriedOver: a.host.carried.Load(), CarryFailed: a.host.uncarried.Load(), TakenOver: a.host.takenOver.Load(),
		Mistakes: a.host.mistakes.Load(), DirectReads: a.host.directReads.Load(), BufferedReads: a.host.bufferedReads.Load(),
		Peeks: a.host.peeks.Load(), PeekedBytes: a.host.peeked.Load(), Redirects: a.host.redirects.Load(),
		RedirectedBytes: a.host.redirected.Load(), SkippedBytes: a.host.skipped.Load(),
		DirectWrites: a.host.directWrites.Load(), BufferedWrites: a.host.bufferedWrites.Load(),
		Broadcasts: a.host.broadcasts.Load(), BroadcastSends: a.host.broadcastSends.Load(),
		Combined: a.host.combined.Load(), CombinedBuffers: a.host.combinedBuffers.Load(),
		GroupBuffers: a.host.groupBuffers.Load(), GroupLends: a.host.groupLends.Load(), GroupDrops: a.host.groupDrops.Load(),
		VirtualBuffers: a.host.virtuals.Load(), Fragments: a.host.fragments.Load(),
		Memory: uint64(a.rx.inUse() + a.tx.inUse()),
	}
	for _, ln := range a.lanes {
		ln.mu.Lock()
		q := ln.past
		if ln.queue != nil {
			c := ln.queue.Stats()
			q.Requests += c.Requests
			q.Responses += c.Responses
			q.DoorbellsIn += c.DoorbellsIn
			q.DoorbellsOut += c.DoorbellsOut
			q.Polls += c.Polls
		}
		s.Outstanding += uint64(ln.reqs.used)
		ln.mu.Unlock()
		s.Requests += q.Requests
		s.Responses += q.Responses
		s.DoorbellsIn += q.DoorbellsIn
		s.DoorbellsOut += q.DoorbellsOut
		s.Polls += q.Polls + ln.polls.Load()
		s.Interrupts += ln.interrupts.Load()
	}
	a.mu.RLock()
	s.Connections = uint64(len(a.conns))
	a.mu.RUnlock()
	return s
}

// Stat is a counter and its name.
type Stat struct {
	Name  string
	Value uint64
}

// List returns the counters with names for people.
func (s Stats) List() []Stat {
	return []Stat{
		{"requests", s.Requests}, {"responses", s.Responses},
		{"doorbells_in", s.DoorbellsIn}, {"doorbells_out", s.DoorbellsOut},
		{"interrupts", s.Interrupts}, {"events", s.Events}, {"polls", s.Polls},
		{"host_copy_bytes", s.HostCopyBytes}, {"direct_bytes", s.DirectBytes},
		{"mistakes", s.Mistakes}, {"direct_reads", s.DirectReads}, {"buffered_reads", s.BufferedReads},
		{"direct_writes", s.DirectWrites}, {"buffered_writes", s.BufferedWrites},
		{"peeks", s.Peeks}, {"peeked_bytes", s.PeekedBytes}, {"redirects", s.Redirects},
		{"redirected_bytes", s.RedirectedBytes}, {"skipped_bytes", s.SkippedBytes},
		{"broadcasts", s.Broadcasts}, {"broadcast_sends", s.BroadcastSends},
		{"group_buffers", s.GroupBuffers}, {"group_lends", s.GroupLends}, {"group_drops", s.GroupDrops},
		{"combined", s.Combined}, {"combined_buffers", s.CombinedBuffers},
		{"virtual_buffers", s.VirtualBuffers}, {"fragments", s.Fragments},
		{"missed_interrupts", s.MissedInterrupts}, {"resets", s.Resets}, {"refused", s.Refused},
		{"bad_tags", s.BadTags}, {"bad_types", s.BadTypes}, {"bad_finals", s.BadFinals},
		{"bad_connections", s.BadConns}, {"bad_lengths", s.BadLengths}, {"lost_buffers", s.LostBuffers},
		{"memory", s.Memory}, {"outstanding", s.Outstanding}, {"connections", s.Connections},
		{"carried_over", s.CarriedOver}, {"carry_failed", s.CarryFailed}, {"taken_over", s.TakenOver},
	}
}
