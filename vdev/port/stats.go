// SPDX-License-Identifier: Apache-2.0

package port

import (
	"reflect"
	"sync/atomic"
)

// Stats are the totals of a [NAT] since it was made. Everything that is dropped
// or refused appears under its reason.
type Stats struct {
	// Frames of the adapter, and frames to it.
	FramesFromAdapter, BytesFromAdapter uint64
	FramesToAdapter, BytesToAdapter     uint64

	// Frames of the adapter that went nowhere.
	DroppedShort    uint64 // no Ethernet header, or shorter than its own headers say
	DroppedLong     uint64 // longer than an IP packet can be
	DroppedOtherMAC uint64 // for a station that is not here
	DroppedProtocol uint64 // neither ARP nor IPv4 nor IPv6
	DroppedChecksum uint64 // wrong IPv4, TCP or UDP checksum
	DroppedNeighbor uint64 // asks for an address that is not the gateway's
	DroppedEcho     uint64 // echo request to anything but the gateway
	DroppedClosed   uint64 // after Close

	// Frames to the adapter that went nowhere.
	DroppedNotAttached uint64 // nobody receives
	DroppedQueueFull   uint64 // the adapter does not keep up

	// Connections.
	TCPOutbound    uint64 // of the adapter, established on both sides
	TCPInbound     uint64 // of host clients, established on both sides
	TCPOpen        uint64 // now
	TCPDenied      uint64 // refused by the deny list
	TCPRefused     uint64 // refused by the target
	TCPUnreachable uint64 // target or network unreachable
	TCPTimedOut    uint64 // target silent
	TCPNoRoom      uint64 // over a limit of the gateway or of the host (descriptors)
	TCPAborted     uint64 // given up during the handshake: by the adapter, or with the gateway
	TCPResets      uint64 // ended by a reset of either side
	TCPDialing     uint64 // outbound, not decided yet
	BytesToHost    uint64 // payload of connections
	BytesFromHost  uint64

	// Datagrams.
	UDPFlows         uint64 // opened
	UDPOpen          uint64 // now
	UDPDenied        uint64 // deny list
	UDPNoRoom        uint64 // flow table full, or no descriptor
	UDPRefused       uint64 // port unreachable at the target
	UDPDroppedToHost uint64 // the host's socket did not take it
	UDPDroppedToPeer uint64 // the gateway's stack did not take it

	// Services.
	DNSQueries, DNSAnswers, DNSFailures uint64 // failures were answered with SERVFAIL
	DNSDropped                          uint64 // not a query, or over the limit
	DHCPRequests, DHCPReplies           uint64
	DHCPDropped                         uint64 // malformed or not for this server
	AcceptErrors                        uint64 // of forwarded listeners
}

// counters has one atomic for each field of Stats, under the same name.
type counters struct {
	FramesFromAdapter, BytesFromAdapter atomic.Uint64
	FramesToAdapter, BytesToAdapter     atomic.Uint64

	DroppedShort, DroppedLong, DroppedOtherMAC, DroppedProtocol   atomic.Uint64
	DroppedChecksum, DroppedNeighbor, DroppedEcho, DroppedClosed  atomic.Uint64
	DroppedNotAttached, DroppedQueueFull                          atomic.Uint64
	TCPOutbound, TCPInbound, TCPOpen, TCPDenied, TCPRefused       atomic.Uint64
	TCPUnreachable, TCPTimedOut, TCPNoRoom, TCPAborted, TCPResets atomic.Uint64
	TCPDialing, BytesToHost, BytesFromHost                        atomic.Uint64
	UDPFlows, UDPOpen, UDPDenied, UDPNoRoom, UDPRefused           atomic.Uint64
	UDPDroppedToHost, UDPDroppedToPeer                            atomic.Uint64
	DNSQueries, DNSAnswers, DNSFailures, DNSDropped               atomic.Uint64
	DHCPRequests, DHCPReplies, DHCPDropped, AcceptErrors          atomic.Uint64
}

// snapshot copies each counter into the field of the same name; a test holds
// the two lists together.
func (c *counters) snapshot() Stats {
	var s Stats
	out, in := reflect.ValueOf(&s).Elem(), reflect.ValueOf(c).Elem()
	for i := range out.NumField() {
		a := in.FieldByName(out.Type().Field(i).Name).Addr().Interface().(*atomic.Uint64)
		out.Field(i).SetUint(a.Load())
	}
	return s
}
