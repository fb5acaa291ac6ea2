// SPDX-License-Identifier: Apache-2.0

package engine

// GSOType says how a frame larger than the link's MTU is to be cut, as the
// virtio-net header does (Virtual I/O Device 1.2, section 5.1.6).
type GSOType uint8

// Segmentation types.
const (
	GSONone GSOType = iota
	GSOTCPv4
	GSOTCPv6
)

// Frame is one Ethernet frame with its header, without FCS. A TCP frame with a
// GSO type may be up to 64 KiB long and stands for as many frames of GSOSize
// payload bytes.
type Frame struct {
	// Data are the bytes in pieces. They belong to the sender and are valid
	// during the call that carries them only.
	Data [][]byte
	// GSO, GSOSize and HeaderLen (Ethernet to TCP options, bytes) describe
	// the segmentation.
	GSO       GSOType
	GSOSize   uint16
	HeaderLen uint16
	// NeedsChecksum: the transport checksum holds the pseudo header's sum
	// only; the rest starts at ChecksumStart and is to be stored at
	// ChecksumStart+ChecksumOffset.
	NeedsChecksum  bool
	ChecksumStart  uint16
	ChecksumOffset uint16
	// ChecksumValid: the sender vouches for the transport checksum.
	ChecksumValid bool
}

// Len is the frame's length in bytes.
func (f *Frame) Len() int {
	n := 0
	for _, p := range f.Data {
		n += len(p)
	}
	return n
}

// Port is an Ethernet side: nat, tap, stream or pair. All methods are safe for
// concurrent use.
type Port interface {
	// MTU of the link in bytes, without the Ethernet header.
	MTU() int
	// Attach sets where received frames go, nil: nowhere; the frames' memory
	// is valid during the call only. It returns when no call to the one before
	// is running any more. An engine attaches before its first Transmit.
	Attach(receive func([]Frame))
	// Transmit sends frames in order and returns how many were taken; the
	// rest is dropped and counted by the port. It does not call back into
	// receive from the same goroutine.
	Transmit([]Frame) int
	// Close ends the port.
	Close() error
}
