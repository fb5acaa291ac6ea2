// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"encoding/binary"
	"math"
	"time"

	"toebox/vdev/abi"
)

// Choice is what becomes of bytes for which the connection, and the group that it is
// in, have no buffer.
type Choice uint8

// Choices of SPEC.md §14.2.
const (
	ChoosePool    Choice = iota // buffers of the pool take them at once (RX07)
	ChooseWait                  // they wait for a buffer, then the pool takes them (RX08)
	ChooseHistory               // how long they wait says the history (RX09)
)

// ChoicePolicy says which buffer received bytes go to (SPEC.md §14.2, §14.5). The pool
// is what was posted to the [ReceiveGroup] with an empty [GroupKey]; a connection for
// which the driver reads ahead has buffers of its own always.
type ChoicePolicy struct {
	Choice Choice
	Wait   time.Duration // that bytes wait for a buffer at most

	// ChooseHistory: the last Count transfers count, 1 to 256 of them, or, if Span is not
	// 0, those of the last Span. If fewer than Threshold percent of them found a buffer
	// of the connection, nothing waits, or, with Reduce, for less time; with the
	// share comes back the wait.
	Count     int
	Span      time.Duration
	Threshold int
	Reduce    bool

	Match PoolMatch
}

// PoolMatch says which buffer of the pool takes bytes (RX10). The weights are for what
// [Memory.Declare] says of memory.
type PoolMatch struct {
	Best        bool // the smallest that takes all, else the largest; not the oldest
	Node        int  // the connection's, 0 to 255
	NodeWeight  int  // of a buffer on this node, 0 to 255
	SpeedWeight int  // of the speed of a buffer, 0 to 255
}

// POOL_WEIGHTS (SPEC.md §7).
const (
	matchSpeedShift = 8
	matchBest       = 1 << 16
	matchNodeShift  = 24
)

func (m *PoolMatch) value() (v uint64, ok bool) {
	for _, p := range []struct {
		n     int
		shift uint
	}{{m.NodeWeight, 0}, {m.SpeedWeight, matchSpeedShift}, {m.Node, matchNodeShift}} {
		if p.n < 0 || p.n > math.MaxUint8 {
			return uint64(p.n), false
		}
		v |= uint64(p.n) << p.shift
	}
	return v | scalarBool(m.Best)*matchBest, true
}

func (m *PoolMatch) put(v uint64) bool {
	*m = PoolMatch{
		Best: v&matchBest != 0, NodeWeight: int(v & math.MaxUint8),
		SpeedWeight: int(v >> matchSpeedShift & math.MaxUint8), Node: int(v >> matchNodeShift & math.MaxUint8),
	}
	back, _ := m.value()
	return back == v
}

func (p *ChoicePolicy) fields() []field {
	return []field{
		{abi.AttrBufferPolicy, &p.Choice}, {abi.AttrBufferWait, &p.Wait}, {abi.AttrHistoryCount, &p.Count},
		{abi.AttrHistoryTime, &p.Span}, {abi.AttrHistoryThreshold, &p.Threshold}, {abi.AttrHistoryMode, &p.Reduce},
		{abi.AttrPoolWeights, &p.Match},
	}
}

// ChoicePolicy returns the policy of the connection's receive buffers.
func (c *Conn) ChoicePolicy() (p ChoicePolicy, err error) {
	err = c.policy(false, p.fields())
	return p, err
}

// SetChoicePolicy sets the policy of the connection's receive buffers; see
// [Conn.SetSendPolicy] for errors.
func (c *Conn) SetChoicePolicy(p ChoicePolicy) error { return c.policy(true, p.fields()) }

// ChoicePolicy returns the policy of connections to come.
func (a *Adapter) ChoicePolicy(ctx context.Context) (p ChoicePolicy, err error) {
	err = a.policy(ctx, false, p.fields())
	return p, err
}

// SetChoicePolicy sets the policy of connections to come; see [Conn.SetSendPolicy]
// for errors.
func (a *Adapter) SetChoicePolicy(ctx context.Context, p ChoicePolicy) error {
	return a.policy(ctx, true, p.fields())
}

// Transfer is bytes that went to a buffer.
type Transfer struct {
	At    time.Duration // by the adapter's clock of policies
	Found bool          // a buffer of the connection, or of its group; not one of the pool
}

// ChoiceHistory is what ChooseHistory goes by now: the transfers that count, oldest
// first, and how long bytes would wait.
type ChoiceHistory struct {
	Found     int // of the transfers
	Wait      time.Duration
	Transfers []Transfer
}

// HISTORY (SPEC.md §14.2): a header, then the transfers, of which there are not more.
const (
	historyHeader = 16
	historyMost   = 256
	historyFound  = 1 << 63
)

// ChoiceHistory returns the history of the connection's transfers.
func (c *Conn) ChoiceHistory() (h ChoiceHistory, err error) {
	if c.isClosed() {
		return h, c.opError("get", errClosed)
	}
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	for {
		var v []byte
		ln, id, err := c.awaitCarried(ctx)
		if err == nil {
			v, err = ln.a.Attribute(ctx, id, abi.AttrHistory)
		}
		if err == nil {
			h, err = parseHistory(v)
		}
		if at, now, aerr := c.awaitCarried(ctx); aerr == nil && (now != id || at != ln) {
			continue // it was carried over meanwhile
		}
		return h, c.opError("get", err)
	}
}

func parseHistory(v []byte) (h ChoiceHistory, err error) {
	le := binary.LittleEndian
	if len(v) < historyHeader {
		return h, &AttributeError{"get", abi.AttrHistory, abi.StatusBadLength}
	}
	n, found, wait := le.Uint32(v), le.Uint32(v[4:]), le.Uint64(v[8:])
	if n > historyMost || len(v) != historyHeader+8*int(n) {
		return h, &AttributeError{"get", abi.AttrHistory, abi.StatusBadLength}
	}
	h.Wait = time.Duration(wait)
	for b := v[historyHeader:]; len(b) > 0; b = b[8:] {
		t := le.Uint64(b)
		h.Transfers = append(h.Transfers, Transfer{At: time.Duration(t &^ historyFound), Found: t&historyFound != 0})
		if t&historyFound != 0 {
			h.Found++
		}
	}
	if h.Found != int(found) || wait > math.MaxInt64 {
		return ChoiceHistory{}, &AttributeError{"get", abi.AttrHistory, abi.StatusBadValue}
	}
	return h, nil
}
