// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"time"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// Values of BUFFER_POLICY (SPEC.md §14.2).
const (
	policyPool = iota
	policyWait
	policyHistory
)

// What a connection with a policy is charged.
const (
	choiceCharge  = 128
	historyCharge = 8*historyMost + 64
)

// choice is how the buffers of one connection are chosen: what a connection
// whose bytes never wait for a buffer of its own does without.
//
//	idle --bytes, no buffer--> waiting --time, an end--> released
//	idle, waiting --bytes shown--> peeked --time--> released
//	waiting, peeked, released --a buffer of its own--> idle
//	released --no bytes left--> idle
type choice struct {
	alarm // when the wait ends, policy clock
	conn  *conn
	state choiceState
	past  *history // nil until BUFFER_POLICY asks for one

	shown  uint64   // position up to which the host was shown bytes
	holder *request // of the connection, for which its bytes wait

	virtuals map[uint8]*virtual // by number, from its first piece on
	early    requestList        // pieces that cannot be used yet

	// While it waits for a buffer of its group.
	group *group
	place int32 // in the group's list; 0: out of it, to have a turn
}

type choiceState uint8

const (
	choiceIdle     choiceState = iota
	choiceWaiting              // for a buffer of the connection
	choiceReleased             // bulk buffers will do
	choicePeeked               // for an answer to a peek
)

// pick chooses the buffer that the next bytes of c go to: its own in the order
// posted, else one of its group, else a bulk buffer of the queue; nil: there is
// none, or it depends on the bytes whether there is one for them.
func (q *queue) pick(c *conn) *request {
	if c.awaitsRead() {
		return nil // starve looks what there is
	}
	if r := c.buffers.front; r != nil {
		if !q.fragments(c, r) {
			return r
		}
		q.count(abi.CounterFragments, 1)
		q.returnBuffer(r, abi.StatusOK)
		return c.buffers.front
	}
	if c.mayShow() {
		return nil // starve shows them, or did
	}
	if r := q.groupBuffer(c); r != nil {
		return r
	}
	if c.attrs.of(abi.AttrBufferPolicy) != policyPool || c.attrs.of(abi.AttrPoolWeights) != 0 {
		return nil // starve decides
	}
	return q.pool.front
}

// pickAny is pick for bytes that cannot wait.
func (q *queue) pickAny(c *conn) *request {
	if c.awaitsRead() {
		return nil
	}
	if r := c.buffers.front; r != nil {
		return r
	}
	if r := q.groupBuffer(c); r != nil {
		return r
	}
	return q.poolBuffer(c)
}

// awaits reports whether the bytes of c, which found no buffer of its own, wait
// for one.
func (q *queue) awaits(c *conn) bool {
	policy := c.attrs.of(abi.AttrBufferPolicy)
	if policy == policyPool {
		return false
	}
	x := q.choice(c)
	if x == nil {
		return false
	}
	now := q.fw.policy.now()
	switch {
	case x.state == choiceReleased:
		return false
	case q.spills:
		q.endWait(x, choiceReleased)
		return false
	case c.failed || c.proto.number() == engine.TCP && peerEnded(c.ep.Info().State):
		q.endWait(x, choiceReleased) // the host is to hear of the end
		return false
	case x.state == choiceWaiting && uint64(x.when) <= now:
		q.count(abi.CounterBufferWaitsOver, 1)
		q.endWait(x, choiceReleased)
		return false
	case x.state == choiceWaiting:
		return true
	}
	wait := c.attrs.of(abi.AttrBufferWait)
	if policy == policyHistory {
		full := wait
		if x.past != nil {
			r := historyRuleOf(c.attrs)
			wait = x.past.patience(&r, now)
		}
		switch {
		case wait == 0 && full != 0:
			q.count(abi.CounterHistoryNone, 1)
		case wait < full:
			q.count(abi.CounterHistoryReduced, 1)
		}
	}
	if wait == 0 {
		x.state = choiceReleased
		return false
	}
	q.count(abi.CounterBufferWaits, 1)
	x.state = choiceWaiting
	q.choices.set(x, alarmAt(after(now, wait)))
	return true
}

// peerEnded reports whether the peer sends no more.
func peerEnded(s engine.State) bool {
	switch s {
	case engine.StateClosed, engine.StateCloseWait, engine.StateClosing, engine.StateLastAck, engine.StateTimeWait:
		return true
	}
	return false
}

// choice is that of c, made at its first use; nil: there is no adapter memory
// for it.
func (q *queue) choice(c *conn) *choice {
	if c.choice == nil && q.fw.memory.charge(choiceCharge) {
		c.choice = &choice{conn: c}
	}
	return c.choice
}

func (q *queue) endWait(x *choice, s choiceState) {
	q.choices.clear(x)
	x.state, x.holder = s, nil
}

// awaitsRead reports whether bytes of c move only when the host has posted a read.
func (c *conn) awaitsRead() bool { return c.reads == 0 && c.attrs.of(abi.AttrDMAWhen) != 0 }

// delivered notes that n bytes of c went into r.
func (q *queue) delivered(c *conn, r *request, n int) {
	own := true
	c.unread = false
	switch {
	case r.conn != nil:
		q.count(abi.CounterOwnDeliveries, 1)
	case r.group != nil:
		q.count(abi.CounterGroupDeliveries, 1)
	default:
		own = false
		q.count(abi.CounterPoolDeliveries, 1)
		if q.spills {
			q.count(abi.CounterSpilledBytes, uint64(n))
		}
	}
	if x := c.choice; x != nil && own {
		switch x.state {
		case choiceWaiting:
			q.count(abi.CounterBufferWaitsMet, 1)
		case choicePeeked:
			q.count(abi.CounterPeeksAnswered, 1)
		}
		q.endWait(x, choiceIdle)
	}
	if c.attrs.of(abi.AttrBufferPolicy) != policyHistory {
		return
	}
	x := q.choice(c)
	if x == nil {
		return
	}
	if x.past == nil {
		if !q.fw.memory.charge(historyCharge) {
			return
		}
		x.past = new(history)
	}
	x.past.add(q.fw.policy.now(), own)
}

// emptied notes that no bytes of c are left in the adapter.
func (q *queue) emptied(c *conn) {
	q.unsqueeze(c)
	if c.choice != nil {
		q.endWait(c.choice, choiceIdle)
	}
}

// dropChoice gives back what the choice of c is charged.
func (q *queue) dropChoice(c *conn) {
	x := c.choice
	if x == nil {
		return
	}
	q.choices.clear(x)
	q.leaveGroup(x)
	q.fw.memory.release(choiceCharge)
	if x.past != nil {
		q.fw.memory.release(historyCharge)
	}
	q.fw.memory.release(len(x.virtuals) * virtualCharge)
	c.choice = nil
}

// expireWaits gives a turn to connections whose wait for a buffer is over.
func (q *queue) expireWaits() {
	if len(q.choices) == 0 {
		return
	}
	now := time.Duration(q.fw.policy.now())
	for x := q.choices.next(); x != nil && x.when <= now; x = q.choices.next() {
		q.choices.clear(x)
		q.receiveSoon(x.conn)
	}
}

// waitDeadline is when a wait for a buffer is over on the clock of time limits;
// 0: none, or the policy clock stands still.
func (q *queue) waitDeadline() time.Duration {
	if len(q.choices) == 0 {
		return 0
	}
	return q.fw.policy.when(uint64(q.choices.next().when))
}

func historyRuleOf(v *values) historyRule {
	return historyRule{
		count: v.of(abi.AttrHistoryCount), span: v.of(abi.AttrHistoryTime), threshold: v.of(abi.AttrHistoryThreshold),
		reduce: v.of(abi.AttrHistoryMode) != 0, wait: v.of(abi.AttrBufferWait),
	}
}

// historyValue is the value of HISTORY.
func (q *queue) historyValue(c *conn) []byte {
	past := new(history)
	if c.choice != nil && c.choice.past != nil {
		past = c.choice.past
	}
	r := historyRuleOf(c.attrs)
	return past.value(&r, q.fw.policy.now())
}
