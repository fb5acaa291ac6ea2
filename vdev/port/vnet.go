// SPDX-License-Identifier: Apache-2.0

package port

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"toebox/firmware/engine"
)

// The virtio_net_hdr in front of each frame of a tap device (Virtual I/O Device
// 1.2, section 5.1.6), without num_buffers. Its fields of 16 bits are in the host's
// byte order, as TUNSETVNETLE is not used.
const (
	vnetHeader         = 10 // bytes
	vnetFlags          = 0  // offset of flags
	vnetGSOType        = 1
	vnetHeaderLength   = 2
	vnetGSOSize        = 4
	vnetChecksumStart  = 6
	vnetChecksumOffset = 8

	vnetNeedsChecksum = 0x01 // flags: VIRTIO_NET_HDR_F_NEEDS_CSUM
	vnetChecksumValid = 0x02 // flags: VIRTIO_NET_HDR_F_DATA_VALID

	vnetGSONone  = 0
	vnetGSOTCPv4 = 1
	vnetGSOTCPv6 = 4
)

// putVnet writes the header that goes before a frame.
func putVnet(b []byte, f *engine.Frame) {
	clear(b[:vnetHeader])
	if f.NeedsChecksum {
		b[vnetFlags] = vnetNeedsChecksum
		binary.NativeEndian.PutUint16(b[vnetChecksumStart:], f.ChecksumStart)
		binary.NativeEndian.PutUint16(b[vnetChecksumOffset:], f.ChecksumOffset)
	}
	switch f.GSO {
	case engine.GSOTCPv4:
		b[vnetGSOType] = vnetGSOTCPv4
	case engine.GSOTCPv6:
		b[vnetGSOType] = vnetGSOTCPv6
	default:
		return
	}
	binary.NativeEndian.PutUint16(b[vnetHeaderLength:], f.HeaderLen)
	binary.NativeEndian.PutUint16(b[vnetGSOSize:], f.GSOSize)
}

// readVnet fills in what the header b says of frame, which is behind it, and says
// whether it can be.
func readVnet(b, frame []byte, f *engine.Frame) bool {
	f.ChecksumValid = b[vnetFlags]&vnetChecksumValid != 0
	if b[vnetFlags]&vnetNeedsChecksum != 0 {
		f.NeedsChecksum = true
		f.ChecksumStart = binary.NativeEndian.Uint16(b[vnetChecksumStart:])
		f.ChecksumOffset = binary.NativeEndian.Uint16(b[vnetChecksumOffset:])
		if f.ChecksumStart < header.EthernetMinimumSize || int(f.ChecksumStart)+int(f.ChecksumOffset)+2 > len(frame) {
			return false
		}
	}
	switch b[vnetGSOType] {
	case vnetGSONone:
		return true
	case vnetGSOTCPv4:
		f.GSO = engine.GSOTCPv4
	case vnetGSOTCPv6:
		f.GSO = engine.GSOTCPv6
	default:
		return false // nobody asked for it
	}
	// The length of the headers that the kernel says is a hint.
	n := tcpHeaders(frame, f.GSO == engine.GSOTCPv6)
	f.HeaderLen = uint16(max(n, 0))
	f.GSOSize = binary.NativeEndian.Uint16(b[vnetGSOSize:])
	return n > 0 && f.GSOSize != 0
}
