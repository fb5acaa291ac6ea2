// SPDX-License-Identifier: Apache-2.0

package guestdriver

// Bus is how a driver reaches one adapter: configuration space, registers,
// memory for DMA, and interrupts. Implementations: vfio, uio, and in ci/bus
// inproc, socket, qtest. All methods are safe for concurrent use.
type Bus interface {
	// Name says which bus it is and where the adapter sits on it.
	Name() string
	// ReadConfig reads size (1, 2 or 4) bytes of configuration space.
	ReadConfig(offset, size int) (uint32, error)
	// WriteConfig writes size (1, 2 or 4) bytes of configuration space.
	WriteConfig(offset, size int, v uint32) error
	// Read32 reads an aligned register of a BAR; all ones when the adapter
	// is gone.
	Read32(bar int, offset uint32) uint32
	// Write32 writes an aligned register by one 32-bit store. Memory stores
	// made before are visible to the adapter when it sees the write.
	Write32(bar int, offset uint32, v uint32)
	// AllocDMA returns zeroed memory, aligned to 4 KiB and contiguous for the
	// adapter, that both sides share until Close.
	AllocDMA(size int) (DMA, error)
	// FreeDMA gives memory of AllocDMA back.
	FreeDMA(DMA) error
	// EnableVectors turns on n vectors, 0 to n-1: by MSI-X or, on a bus
	// without, made of the interrupt pin. It is called once, before the first
	// Wait.
	EnableVectors(n int) error
	// Wait blocks until the vector was signalled since the last Wait on it
	// returned, and returns net.ErrClosed when the bus is closed. One
	// goroutine waits per vector.
	Wait(vector int) error
	// Reset resets the function.
	Reset() error
	// Close unmaps everything and ends every Wait.
	Close() error
}

// Mapper is a Bus that lets the adapter reach memory of the application, too:
// vfio, and in ci/bus inproc. Behind uio nothing translates addresses or keeps
// pages where they are; on the other rungs the adapter maps files that the
// application's memory is no part of.
type Mapper interface {
	// MapDMA gives the adapter memory that begins and ends with a page. What
	// is not there, or not to be written, is an error.
	MapDMA(p []byte) (DMA, error)
	// UnmapDMA takes memory of MapDMA away from it. No access to it is running
	// any more when it returns.
	UnmapDMA(DMA) error
}

// DMA is memory shared with the adapter.
type DMA struct {
	Bytes []byte
	IOVA  uint64
}
