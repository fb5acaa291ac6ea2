// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const (
	// firstTimeout is after what time a SYN that has no answer is sent again (RFC
	// 6298 section 2.1), by the stack and by its peers.
	firstTimeout = time.Second
	// maxHeaders is how long a packet can be that has headers alone.
	maxHeaders = header.IPv6MinimumSize + header.TCPHeaderMaximumSize
)

// unclock takes the echoed time stamp out of an answer to a SYN, a packet that
// starts with b, when that may have been sent more than once, or the answer may. The
// stack puts the time of the first SYN into all. The round trip that it would
// measure were the time-outs before: several times as long would be those of the
// connection, and of its loss detection, for long. Without an echo it waits for the
// first segment with data (RFC 6298 section 3).
func (n *netstack) unclock(proto tcpip.NetworkProtocolNumber, b []byte, size int) {
	if size > maxHeaders {
		return
	}
	s, ok := parseInbound(proto, b, size)
	if !ok || !s.is(header.TCPFlagSyn|header.TCPFlagAck) {
		return
	}
	c := n.conns.find(s.id)
	if c == nil || n.stack.Clock().NowMonotonic().Sub(c.began) < firstTimeout {
		return
	}
	s.options(func(kind byte, at, k int) {
		if kind == header.TCPOptionTS && k == header.TCPOptionTSLength {
			const echo = 6 // RFC 7323 section 3.2
			if binary.BigEndian.Uint32(s.tcp[at+echo:]) != 0 {
				s.put32(at+echo, 0)
			}
		}
	})
}
