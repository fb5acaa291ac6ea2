// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"
)

// The stack's version in go.mod keeps SND.UNA where sendUnacked looks. When
// this fails after an upgrade, find the sender's TCPSenderState again.
func TestStackKeepsUnacked(t *testing.T) {
	f, err := unackedField()
	if err != nil {
		t.Fatal(err)
	}
	if f.Name != "SndUna" || f.Type.String() != "seqnum.Value" || len(f.Index) != 2 {
		t.Errorf("%+v", f)
	}
}

func TestAckCounter(t *testing.T) {
	var a ackCounter
	if a.advance(5) || a.bytes != 0 {
		t.Error("counts before the start")
	}
	const start = 0xffff_fff0
	a.start(start)
	a.start(7) // only the first counts
	for _, step := range []struct {
		una   uint32
		moved bool
		bytes uint64
	}{
		{start, false, 0},
		{start + 8, true, 8},
		{start + 4, false, 8}, // late
		{4, true, 20},         // past the wrap
		{4, false, 20},
		{4 + 1<<31 - 1, true, 20 + 1<<31 - 1},
		{2, true, 20 + 1<<32 - 2},
	} {
		if moved := a.advance(step.una); moved != step.moved || a.bytes != step.bytes {
			t.Errorf("at %#x: moved %v, %d bytes, want %v, %d", step.una, moved, a.bytes, step.moved, step.bytes)
		}
	}
}

// The memory behind a frame is at most a third more than its bytes, in few
// pieces, and every piece but the last fills its memory.
func TestViewSizes(t *testing.T) {
	for size := 1; size <= 65575; size++ {
		memory, pieces := 0, 0
		for left := size; left > 0; pieces++ {
			n := viewSize(left)
			if n <= 0 || n > left {
				t.Fatalf("%d bytes: a view of %d of %d", size, n, left)
			}
			c := 64
			for c < n {
				c *= 2
			}
			if left -= n; left > 0 && c != n {
				t.Fatalf("%d bytes: a view of %d in the middle", size, n)
			}
			memory += c
		}
		if size > 2048 && memory > size*4/3+64 || pieces > 6 {
			t.Errorf("%d bytes take %d in %d pieces", size, memory, pieces)
		}
	}
}

func TestPieces(t *testing.T) {
	p := pieces{list: [][]byte{{}, {1, 2}, {}, {3}, {4, 5, 6}}}
	var got [4]byte
	p.copyTo(got[:1])
	p.copyTo(got[1:])
	if got != [4]byte{1, 2, 3, 4} {
		t.Errorf("%v", got)
	}
	rest := [3]byte{9, 9, 9}
	p.copyTo(rest[:])
	if rest != [3]byte{5, 6, 9} {
		t.Errorf("%v", rest)
	}
}

func TestStackErrors(t *testing.T) {
	table := []struct {
		stack tcpip.Error
		want  error
	}{
		{&tcpip.ErrWouldBlock{}, ErrWouldBlock},
		{&tcpip.ErrClosedForReceive{}, ErrEndOfStream},
		{&tcpip.ErrConnectionRefused{}, ErrRefused},
		{&tcpip.ErrTimeout{}, ErrTimedOut},
		{&tcpip.ErrNoPortAvailable{}, ErrNoPorts},
		{nil, nil},
	}
	for _, tt := range table {
		if err := fromStack(tt.stack); err != tt.want {
			t.Errorf("%v becomes %v, want %v", tt.stack, err, tt.want)
		}
	}
	if err := fromStack(&tcpip.ErrDuplicateAddress{}); err == nil || err.Error() != "engine: duplicate address" {
		t.Errorf("an error without a sentinel becomes %v", err)
	}
}

type countingSink int

func (c *countingSink) Notify(Events) { *c++ }

// An event that is under way when the owner ends the endpoint is not
// reported, whatever brings it.
func TestEndIsFinal(t *testing.T) {
	var sink countingSink
	e := endpoint{wq: new(waiter.Queue)}
	e.report(&sink)
	e.register(listener{&e})
	e.notify(EventReadable)
	e.notify(0)
	e.wq.Notify(waiter.EventIn)
	if sink != 2 {
		t.Errorf("%d events", sink)
	}
	if !e.end() || e.end() || !e.hasEnded() {
		t.Error("an endpoint ends once")
	}
	e.notify(EventReadable)
	e.wq.Notify(waiter.EventIn)
	if sink != 2 {
		t.Errorf("%d events after the end", sink)
	}
}

type listener struct{ e *endpoint }

func (l listener) NotifyEvent(waiter.EventMask) { l.e.notify(EventReadable) }

func TestUpdateChecksum(t *testing.T) {
	for _, at := range []int{20, 21, 22, 27} {
		seg := make(header.TCP, 28)
		for i := range seg {
			seg[i] = byte(i * 29)
		}
		seg[16], seg[17] = 0, 0
		seg.SetChecksum(^onesSum(seg))
		old := [2]byte{seg[at]}
		to := [2]byte{1}
		if at+1 < len(seg) {
			old[1], to[1] = seg[at+1], 1
			seg[at+1] = 1
		}
		seg[at] = 1
		updateChecksum(seg, old, to, at%2 == 0)
		if sum := onesSum(seg); sum != 0xffff {
			t.Errorf("bytes at %d: sum %#x", at, sum)
		}
	}
}

// onesSum is the one's complement sum of RFC 1071.
func onesSum(b []byte) uint16 {
	sum := uint32(0)
	for i := range b {
		sum += uint32(b[i]) << (8 * (1 - i%2))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// A connection that takes over another's addresses is not forgotten when that
// one ends.
func TestConnTable(t *testing.T) {
	var table connTable
	table.init()
	id := stack.TransportEndpointID{LocalPort: 80, RemotePort: 1234}
	first, second := new(conn), new(conn)
	table.add(id, first)
	table.add(id, second)
	table.remove(id, first)
	if got := table.shard(id).conns[id]; got != second {
		t.Error("forgotten")
	}
	table.remove(id, second)
	if len(table.shard(id).conns) != 0 {
		t.Error("kept")
	}
}
