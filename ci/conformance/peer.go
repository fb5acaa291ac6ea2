// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"net/netip"
)

// Op is what a peer does in one step of a script.
type Op string

// Operations. N is a count of bytes; 0 means until the end of the stream.
const (
	OpEcho    Op = "echo"    // send back what comes, until the end of the stream
	OpDiscard Op = "discard" // read N bytes
	OpSend    Op = "send"    // send N bytes of the stream of Seed (see Payload)
	OpFIN     Op = "fin"     // end the sending direction
	OpReset   Op = "reset"   // end the connection with RST
	OpWait    Op = "wait"    // go on at the next Signal
)

// Step is one operation.
type Step struct {
	Op   Op
	N    int64  `json:",omitempty"`
	Seed uint64 `json:",omitempty"`
}

// Script is what the peer does on a connection, in order; after it the
// connection is closed.
type Script []Step

// Result is how a script ended.
type Result struct {
	// Received counts all bytes read; Sum is their SHA-256 in hexadecimal.
	Received int64
	Sum      string
	// EOF: the adapter's FIN was read.
	EOF bool
	// Err is empty, or names the step that failed and how.
	Err string `json:",omitempty"`
	// Remote is the adapter's end.
	Remote netip.AddrPort
}

// Peer is the other end of the adapter's network. All methods are safe for
// concurrent use; addresses are as the adapter sees them.
type Peer interface {
	// Serve listens on a new port; each connection runs the script.
	Serve(ctx context.Context, s Script) (Session, error)
	// Dial connects to the adapter's port, one of Reachable, and runs the script.
	Dial(ctx context.Context, port uint16, s Script) (Session, error)
	// Reachable returns n local ports of the adapter that Dial can reach, not
	// given out to anybody else.
	Reachable(ctx context.Context, n int) ([]uint16, error)
	// Hairpin is an address by which the adapter reaches its own port, one of
	// Reachable, by way of the peer.
	Hairpin(ctx context.Context, port uint16) (netip.AddrPort, error)
	// Refused is an address where a connect is refused.
	Refused(ctx context.Context) (netip.AddrPort, error)
	// Datagrams opens a UDP port that sends each datagram back to where it came
	// from. The session has no result and no signal.
	Datagrams(ctx context.Context) (Session, error)
	// Unwilling is an address where datagrams are answered by ICMP port
	// unreachable.
	Unwilling(ctx context.Context) (netip.AddrPort, error)
	// Unreachable is an address of the adapter's own network where nobody is.
	Unreachable() netip.AddrPort
	// Hang is an address where a connect gets no answer for long.
	Hang(ctx context.Context) (netip.AddrPort, error)
	// Impair makes the wire between adapter and network as bad as rules say,
	// "loss=1%,seed=7" for example (see package port), or good again for "none",
	// and returns what it has done to frames since the start.
	Impair(ctx context.Context, rules string) (Harm, error)
	// IPv6 is the same over IPv6; nil: the host has none. Its owner closes it.
	IPv6() Peer
	// Flood sends segments with SYN to the adapter that nobody means.
	Flood(ctx context.Context, f Flood) error
	Close() error
}

// Flood is Count segments with SYN to Ports ports of the adapter in turn, the first
// of which is Port. They come from many addresses of its link where nobody is,
// or, of a Scan, from one of them.
type Flood struct {
	Port, Ports uint16
	Count       int
	Scan        bool
}

// MaxFlood bounds Count.
const MaxFlood = 1 << 17

// Harm counts frames, both directions together.
type Harm struct {
	Frames, Lost, Corrupted, Duplicated, Reordered, Delivered uint64
}

// Session is a served port or a dialled connection.
type Session interface {
	// Addr is where it listens, or the far end of a dialled connection.
	Addr() netip.AddrPort
	// Signal lets one OpWait of any of its connections go on.
	Signal(ctx context.Context) error
	// Result waits for the next connection to end.
	Result(ctx context.Context) (Result, error)
	// Close ends listening and all its connections.
	Close() error
}

// Payload fills p with the bytes [off, off+len(p)) of the pseudo-random stream
// of seed. Any part can be computed without the ones before it, so both ends
// check a stream without keeping it.
func Payload(p []byte, seed uint64, off int64) {
	var word uint64
	have := int64(-1)
	for i := range p {
		at := off + int64(i)
		if at>>3 != have {
			have = at >> 3
			word = mix(seed + uint64(have)*0x9e3779b97f4a7c15)
		}
		p[i] = byte(word >> (8 * uint(at&7)))
	}
}

// mix is the output function of SplitMix64.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
