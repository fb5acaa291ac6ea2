// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"toebox/ci/conformance"
)

// Hosts of the link where nobody is: the last byte of their addresses.
const (
	firstNobody = 100
	nobodies    = 100
)

// Flood implements conformance.Peer.
func (h *Host) Flood(ctx context.Context, f conformance.Flood) error {
	if h.cfg.Inject == nil {
		return errors.New("peer: flood: this network takes no frames")
	}
	if f.Count < 0 || f.Count > conformance.MaxFlood || f.Ports == 0 {
		return fmt.Errorf("peer: flood: %d segments to %d ports", f.Count, f.Ports)
	}
	for i := range f.Count {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("peer: flood: %w", err)
		}
		src := h.cfg.Adapter.As4()
		src[3] = firstNobody
		if !f.Scan {
			src[3] += byte(i % nobodies)
		}
		frame := syn(src, h.cfg.Adapter.As4(), h.cfg.MAC, uint16(1024+i), f.Port+uint16(i%int(f.Ports)), uint32(i)*7919)
		if err := h.cfg.Inject(frame); err != nil {
			return fmt.Errorf("peer: flood: %w", err)
		}
	}
	return nil
}

// syn is an Ethernet frame with a TCP segment that asks for a connection.
func syn(src, dst [4]byte, mac [6]byte, from, to uint16, seq uint32) []byte {
	f := make([]byte, 0, 54)
	f = append(f, mac[:]...)
	f = append(f, 2, 0, 0, 0, 1, src[3], 8, 0)             // from a local address; IPv4
	f = append(f, 0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0) // IPv4: 40 bytes of TCP
	f = append(append(f, src[:]...), dst[:]...)
	f = binary.BigEndian.AppendUint16(f, from)
	f = binary.BigEndian.AppendUint16(f, to)
	f = binary.BigEndian.AppendUint32(f, seq)
	f = append(f, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0) // SYN
	ip, tcp := f[14:34], f[34:]
	binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip))
	pseudo := sum(6+uint32(len(tcp)), ip[12:]) // protocol and length, addresses
	binary.BigEndian.PutUint16(tcp[16:], ^sum(uint32(pseudo), tcp))
	return f
}

// sum is the Internet checksum, not inverted, of an even number of bytes.
func sum(sum uint32, b []byte) uint16 {
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
