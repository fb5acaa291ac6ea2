// SPDX-License-Identifier: Apache-2.0

package firmware

import (
	"net/netip"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// protocol is where the journeys of streams and of datagrams differ. It has no
// state: that is the connection's.
type protocol interface {
	number() engine.Protocol
	// checkConnect and checkListen check what is the protocol's of a target.
	checkConnect(t *abi.Target) abi.Status
	checkListen(t *abi.Target, attrs *values) abi.Status
	// listenPhase is the phase that listen leaves a bound endpoint in.
	listenPhase() phase
	listen(c *conn, t *abi.Target) error
	// checkSend checks the size of a send of n bytes.
	checkSend(c *conn, n uint32) abi.Status
	// send moves a turn's worth of c into the engine.
	send(q *queue, c *conn)
	// deliver moves what has arrived, of a stream at most so many bytes, into
	// one buffer and reports it. It returns what that counts in a turn.
	deliver(q *queue, c *conn, r *request, most int) (int, error)
	// linger arms the limit of a graceful termination.
	linger(q *queue, c *conn)
}

// protocolOf is the protocol of a target that the parser has let pass.
func protocolOf(t *abi.Target) protocol {
	if t.Protocol == uint8(engine.UDP) {
		return datagrams{}
	}
	return stream{}
}

// means reports whether an attribute has a meaning for c (SPEC.md §7, T and D).
func (c *conn) means(a abi.Attribute) bool {
	switch a {
	case abi.AttrConnectLimit, abi.AttrBacklog, abi.AttrNagle, abi.AttrSACK,
		abi.AttrKeepalive, abi.AttrKeepaliveIdle, abi.AttrKeepaliveInterval, abi.AttrKeepaliveCount,
		abi.AttrUserTimeout, abi.AttrCongestion, abi.AttrLinger, abi.AttrSteering,
		abi.AttrNotifyTime, abi.AttrNotifyBytes, abi.AttrNotifyDynamic, abi.AttrNotifyMax,
		abi.AttrLinkTransferSize, abi.AttrGatherThreshold, abi.AttrCombine,
		abi.AttrPeek, abi.AttrPeekWait, abi.AttrSkip,
		abi.AttrNotifyData, abi.AttrNotifyFailures, abi.AttrNotifyPattern,
		abi.AttrRTT, abi.AttrCongestionWindow, abi.AttrBytesAcked, abi.AttrRetransmits, abi.AttrMSS:
		return c.proto.number() == engine.TCP
	case abi.AttrBroadcast, abi.AttrMulticastTTL, abi.AttrMulticastLoop, abi.AttrJoin, abi.AttrLeave:
		return c.proto.number() == engine.UDP
	}
	return true
}

// stream is TCP: connections and listeners.
type stream struct{}

func (stream) number() engine.Protocol { return engine.TCP }

func (stream) checkConnect(t *abi.Target) abi.Status {
	a := t.Remote.Addr()
	if a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return abi.StatusBadAddress
	}
	return abi.StatusOK
}

func (stream) checkListen(t *abi.Target, attrs *values) abi.Status {
	switch {
	case attrs.of(abi.AttrSACK) == 0:
		return abi.StatusNotSupported // the engine answers for all alike
	case t.Backlog > maxBacklog:
		return abi.StatusBadValue
	}
	return abi.StatusOK
}

func (stream) listenPhase() phase { return listening }

func (stream) listen(c *conn, t *abi.Target) error {
	backlog := int(t.Backlog)
	if backlog == 0 {
		backlog = int(c.attrs.of(abi.AttrBacklog))
	}
	return c.ep.Listen(backlog)
}

func (stream) checkSend(*conn, uint32) abi.Status { return abi.StatusOK }

func (stream) send(q *queue, c *conn) { q.sendStream(c) }

func (stream) deliver(q *queue, c *conn, r *request, most int) (int, error) {
	return q.deliverStream(c, r, most)
}

func (stream) linger(q *queue, c *conn) { q.limit(c, c.attrs.of(abi.AttrLinger)) }
