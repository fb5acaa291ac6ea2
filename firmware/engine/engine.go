// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"net/netip"
	"time"
)

// Protocol is a transport protocol by its IANA number.
type Protocol uint8

// The protocols an adapter offers (IF16).
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// Events tells what became true of an endpoint. Several bits may be set.
type Events uint32

// Readiness. A set bit means "look", not "is": it may be stale by the time the
// owner looks.
const (
	EventReadable  Events = 1 << iota // bytes, a connection to accept, or the end of the stream
	EventWritable                     // the send buffer has room again, or a connect ended
	EventAcked                        // the peer acknowledged more bytes
	EventConnected                    // the handshake is over, well or badly: see Err
	EventClosed                       // reset, timed out, or both directions are done
)

// Sink receives the readiness of one endpoint. Notify is called with locks of
// the engine held, from any goroutine: it must only note the events and wake
// the owner, and must not call the endpoint. A lock that Notify takes must not
// be held by anybody who calls the endpoint.
type Sink interface {
	Notify(Events)
}

// Errors an endpoint answers with. The firmware maps each to one status code.
var (
	ErrWouldBlock      = errors.New("engine: would block")
	ErrEndOfStream     = errors.New("engine: end of stream")
	ErrRefused         = errors.New("engine: connection refused")
	ErrReset           = errors.New("engine: connection reset by peer")
	ErrAborted         = errors.New("engine: connection aborted")
	ErrTimedOut        = errors.New("engine: timed out")
	ErrHostUnreachable = errors.New("engine: host unreachable")
	ErrNetUnreachable  = errors.New("engine: network unreachable")
	ErrAddressInUse    = errors.New("engine: address in use")
	ErrBadAddress      = errors.New("engine: bad local address")
	ErrNoPorts         = errors.New("engine: no free port")
	ErrNotConnected    = errors.New("engine: not connected")
	ErrInvalidState    = errors.New("engine: invalid endpoint state")
	ErrNoMemory        = errors.New("engine: out of memory")
	ErrNotSupported    = errors.New("engine: not supported")
	ErrMessageTooLong  = errors.New("engine: message too long")
)

// Route sends a destination prefix to a gateway; an invalid gateway means the
// destination is on the link.
type Route struct {
	Destination netip.Prefix
	Gateway     netip.Addr
}

// Engine opens endpoints on one Ethernet port.
type Engine interface {
	// SetAddresses replaces the interface addresses. Connections on removed
	// addresses end as their peers find out.
	SetAddresses([]netip.Prefix) error
	// SetRoutes replaces the routing table.
	SetRoutes([]Route) error
	// Open makes an unbound, unconnected endpoint that reports to sink.
	Open(p Protocol, v6 bool, sink Sink) (Endpoint, error)
	// Stats returns the totals since the engine was made.
	Stats() Stats
	// Close aborts all endpoints and detaches from the port.
	Close() error
}

// Endpoint is one connection, listener or datagram endpoint. The owner calls
// Close or Abort exactly once; after it no event is reported any more.
type Endpoint interface {
	// Bind sets the local address; port 0 lets the engine pick one when it
	// connects or listens.
	Bind(local netip.AddrPort) error
	// Connect starts a handshake and returns nil at once; EventConnected
	// follows. An error means that no handshake was started.
	Connect(remote netip.AddrPort) error
	// ConnectResult says how the handshake ended: nil when established,
	// ErrWouldBlock while it runs.
	ConnectResult() error
	// Listen accepts up to backlog connections that nobody has taken yet.
	Listen(backlog int) error
	// Accept takes one established connection, which reports to the sink
	// that attach returns for it. ErrWouldBlock when there is none. The
	// caller looks at the new endpoint once without waiting for an event:
	// bytes may be there already.
	Accept(attach func(Endpoint) Sink) (Endpoint, error)

	// Read offers received bytes in order to take, which returns how many it
	// took of p; less than len(p) ends the call. At most limit bytes are
	// offered. What was taken is consumed and opens the receive window.
	// It returns ErrWouldBlock when nothing is there, ErrEndOfStream after
	// the peer's FIN, ErrReset and the like after a failure.
	Read(limit int, take func(p []byte) int) (int, error)
	// Peek is Read without consuming. What it has offered stands still until
	// it returns.
	Peek(limit int, take func(p []byte) int) (int, error)
	// Write queues up to n bytes. fill is called one or more times to fill
	// the engine's memory with the next bytes; an error from fill ends the
	// call, and is returned with the count of what was queued before.
	// It returns how many bytes were queued and ErrWouldBlock when that is
	// less than n for want of room; EventWritable follows.
	Write(n int, fill func(p []byte) error) (int, error)
	// Writable is the free room of the send buffer in bytes.
	Writable() int

	// CloseWrite sends a FIN after what is queued.
	CloseWrite() error
	// Close ends the endpoint in an orderly way in the background.
	Close()
	// Abort ends it with a reset.
	Abort()

	// Info is a snapshot.
	Info() Info
	// Err is the failure that ended the connection, or nil.
	Err() error
	// SetOption and Option carry the settings of [Option]; an option the
	// engine cannot do soundly answers ErrNotSupported.
	SetOption(o Option, v int64) error
	Option(o Option) (int64, error)
}

// Datagrams is an Endpoint of protocol UDP, bound or connected. Its Read, Peek
// and Write move one datagram each; Bind picks a port at once; what others than
// the peer send to a connected one is dropped. It has no failure of its own.
type Datagrams interface {
	Endpoint
	// Receive hands the oldest datagram, whole, to take, which must not keep
	// p. ErrWouldBlock when there is none.
	Receive(take func(from netip.AddrPort, p []byte)) error
	// SendTo sends one datagram of n bytes; fill is as in Write. An error
	// means that nothing was sent.
	SendTo(to netip.AddrPort, n int, fill func(p []byte) error) error
	// MaxDatagram is the longest payload, in bytes.
	MaxDatagram() int
	// TakeError returns, once, ErrRefused after the peer's port was reported
	// unreachable; EventReadable tells of it.
	TakeError() error
	// Join and Leave enter and leave a multicast group of the endpoint's
	// family, else ErrBadOption; Groups lists them.
	Join(group netip.Addr) error
	Leave(group netip.Addr) error
	Groups() []netip.Addr
}

// Option names a setting of an endpoint (IF14). Times are nanoseconds.
type Option uint8

// Settings.
const (
	OptSendBuffer        Option = iota // bytes
	OptReceiveWindow                   // bytes advertised at most
	OptNoDelay                         // 1: Nagle off
	OptKeepAlive                       // 0 or 1
	OptKeepAliveIdle                   // ns
	OptKeepAliveInterval               // ns
	OptKeepAliveCount                  // probes
	OptUserTimeout                     // ns
	OptTOS                             // IPv4 TOS or IPv6 traffic class
	OptTTL                             // IPv4 TTL or IPv6 hop limit
	OptSACK                            // 0 or 1, before the handshake
	OptLinger                          // ns, -1 off
	OptCongestion                      // 0: the engine's default (Reno)
	OptBroadcast                       // 0 or 1, datagrams
	OptMulticastTTL                    // 0..255, datagrams
	OptMulticastLoop                   // 0 or 1, datagrams
)

// State is a TCP state of RFC 9293 section 3.3.2, numbered as in SPEC.md.
type State uint8

// States.
const (
	StateClosed State = iota
	StateListen
	StateSynSent
	StateSynReceived
	StateEstablished
	StateFinWait1
	StateFinWait2
	StateCloseWait
	StateClosing
	StateLastAck
	StateTimeWait
)

// Info is a snapshot of an endpoint. Byte counts are of payload since the
// connection was opened; Acked never exceeds Sent.
type Info struct {
	Protocol      Protocol
	State         State
	Local         netip.AddrPort
	Remote        netip.AddrPort
	Queued        uint64 // bytes accepted by Write
	Acked         uint64 // bytes the peer acknowledged
	Received      uint64 // bytes that arrived in order
	Delivered     uint64 // bytes taken by Read
	MSS           uint32
	Cwnd          uint32 // segments
	SendWindow    uint32 // bytes
	RTT           time.Duration
	RTTVar        time.Duration
	RTO           time.Duration
	Retransmits   uint64
	SegmentsSent  uint64
	SegmentsRecvd uint64
}

// Stats are the totals of an engine.
type Stats struct {
	FramesSent, FramesReceived         uint64
	FrameBytesSent, FrameBytesReceived uint64
	FramesDropped                      uint64 // the sum of the next seven
	FramesRefused                      uint64 // not taken by the port
	FramesShort, FramesOversize        uint64 // no frames at all
	FramesOtherAddress                 uint64 // for another Ethernet address
	FramesOtherType                    uint64 // neither IPv4 nor IPv6 nor ARP
	FramesDetached                     uint64 // outside the engine's life
	FramesUnanswered                   uint64 // of unknown connections, which may come from another engine
	SegmentsSent, SegmentsReceived     uint64
	Retransmits                        uint64
	ActiveOpens, PassiveOpens          uint64
	ResetsSent, ResetsReceived         uint64
	ChecksumErrors, ListenOverflows    uint64
	Endpoints                          uint64 // open now
	DatagramsDropped                   uint64 // that came for an endpoint and were lost
	SegmentsRefused                    uint64 // whose payload was refused by Holder's judge
}
