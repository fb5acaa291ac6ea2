// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Command is the number of a message.
type Command uint16

// Messages, vfio-user "Message sizes and commands".
const (
	CommandVersion            Command = 1  // VFIO_USER_VERSION
	CommandDMAMap             Command = 2  // VFIO_USER_DMA_MAP
	CommandDMAUnmap           Command = 3  // VFIO_USER_DMA_UNMAP
	CommandDeviceInfo         Command = 4  // VFIO_USER_DEVICE_GET_INFO
	CommandRegionInfo         Command = 5  // VFIO_USER_DEVICE_GET_REGION_INFO
	CommandRegionIOFDs        Command = 6  // VFIO_USER_DEVICE_GET_REGION_IO_FDS
	CommandIRQInfo            Command = 7  // VFIO_USER_DEVICE_GET_IRQ_INFO
	CommandSetIRQs            Command = 8  // VFIO_USER_DEVICE_SET_IRQS
	CommandRegionRead         Command = 9  // VFIO_USER_REGION_READ
	CommandRegionWrite        Command = 10 // VFIO_USER_REGION_WRITE
	CommandDMARead            Command = 11 // VFIO_USER_DMA_READ, server to client
	CommandDMAWrite           Command = 12 // VFIO_USER_DMA_WRITE, server to client
	CommandReset              Command = 13 // VFIO_USER_DEVICE_RESET
	CommandDirtyPages         Command = 14 // VFIO_USER_DIRTY_PAGES, removed from the specification
	CommandRegionWriteMulti   Command = 15 // VFIO_USER_REGION_WRITE_MULTI
	CommandFeature            Command = 16 // VFIO_USER_DEVICE_FEATURE
	CommandMigrationDataRead  Command = 17 // VFIO_USER_MIG_DATA_READ
	CommandMigrationDataWrite Command = 18 // VFIO_USER_MIG_DATA_WRITE
	CommandPrecopyInfo        Command = 19 // VFIO_USER_GET_PRECOPY_INFO
)

// String returns the specification's name of the message.
func (c Command) String() string {
	switch c {
	case CommandVersion:
		return "VERSION"
	case CommandDMAMap:
		return "DMA_MAP"
	case CommandDMAUnmap:
		return "DMA_UNMAP"
	case CommandDeviceInfo:
		return "DEVICE_GET_INFO"
	case CommandRegionInfo:
		return "DEVICE_GET_REGION_INFO"
	case CommandRegionIOFDs:
		return "DEVICE_GET_REGION_IO_FDS"
	case CommandIRQInfo:
		return "DEVICE_GET_IRQ_INFO"
	case CommandSetIRQs:
		return "DEVICE_SET_IRQS"
	case CommandRegionRead:
		return "REGION_READ"
	case CommandRegionWrite:
		return "REGION_WRITE"
	case CommandDMARead:
		return "DMA_READ"
	case CommandDMAWrite:
		return "DMA_WRITE"
	case CommandReset:
		return "DEVICE_RESET"
	case CommandDirtyPages:
		return "DIRTY_PAGES"
	case CommandRegionWriteMulti:
		return "REGION_WRITE_MULTI"
	case CommandFeature:
		return "DEVICE_FEATURE"
	case CommandMigrationDataRead:
		return "MIG_DATA_READ"
	case CommandMigrationDataWrite:
		return "MIG_DATA_WRITE"
	case CommandPrecopyInfo:
		return "GET_PRECOPY_INFO"
	}
	return fmt.Sprintf("command %d", uint16(c))
}

// Message header, vfio-user "Header".
const (
	headerSize = 16

	flagTypeMask uint32 = 0xf
	typeCommand  uint32 = 0
	typeReply    uint32 = 1
	flagNoReply  uint32 = 1 << 4 // VFIO_USER_NO_REPLY
	flagError    uint32 = 1 << 5 // VFIO_USER_ERROR
)

// header opens every message. Integers on the socket are in the order of the
// host, as both ends run on one machine.
type header struct {
	id    uint16
	cmd   Command
	size  uint32 // of the whole message, header included
	flags uint32
	errno uint32
}

// appendTo appends the encoded header to b.
func (h header) appendTo(b []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, h.id)
	b = binary.NativeEndian.AppendUint16(b, uint16(h.cmd))
	b = binary.NativeEndian.AppendUint32(b, h.size)
	b = binary.NativeEndian.AppendUint32(b, h.flags)
	return binary.NativeEndian.AppendUint32(b, h.errno)
}

// parseHeader decodes the first headerSize bytes of b, which must be there.
func parseHeader(b []byte) header {
	b = b[:headerSize]
	return header{
		id:    binary.NativeEndian.Uint16(b),
		cmd:   Command(binary.NativeEndian.Uint16(b[2:])),
		size:  binary.NativeEndian.Uint32(b[4:]),
		flags: binary.NativeEndian.Uint32(b[8:]),
		errno: binary.NativeEndian.Uint32(b[12:]),
	}
}

// cursor takes integers off the front of a payload. Reading past the end sets
// short and yields zero; the caller checks once, at the end.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) u16() uint16 {
	if len(c.b) < 2 {
		c.b, c.short = nil, true
		return 0
	}
	v := binary.NativeEndian.Uint16(c.b)
	c.b = c.b[2:]
	return v
}

func (c *cursor) u32() uint32 {
	if len(c.b) < 4 {
		c.b, c.short = nil, true
		return 0
	}
	v := binary.NativeEndian.Uint32(c.b)
	c.b = c.b[4:]
	return v
}

func (c *cursor) u64() uint64 {
	if len(c.b) < 8 {
		c.b, c.short = nil, true
		return 0
	}
	v := binary.NativeEndian.Uint64(c.b)
	c.b = c.b[8:]
	return v
}

func (c *cursor) err() error {
	if c.short {
		return io.ErrUnexpectedEOF
	}
	return nil
}
