// SPDX-License-Identifier: Apache-2.0

package chip

import (
	"log/slog"
	"time"

	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// Chip is what the firmware needs of the function it runs on. All methods are
// safe for concurrent use and none blocks for longer than a copy of what it
// is given, except Read and Write of memory that is not shared.
type Chip interface {
	// Read copies host memory at iova into p. While bus mastering is off, or
	// for addresses that are not mapped or not readable, it fails.
	Read(iova uint64, p []byte) error
	// Write copies p to host memory at iova.
	Write(iova uint64, p []byte) error
	// View calls f with consecutive pieces of shared host memory, each of at
	// most 64 KiB, that together are [iova, iova+n). A piece must not be
	// kept. It fails before or between pieces; an error of f ends it and is
	// returned. Word 0 of descriptors and event words are reached through
	// View and abi.LoadWord, abi.StoreWord.
	View(iova uint64, n int, write bool, f func(p []byte) error) error
	// Shared reports whether [iova, iova+n) is wholly mapped for reading and
	// writing in memory that View reaches.
	Shared(iova, n uint64) bool
	// Mapping is another number, never used before, after any of [iova, iova+n)
	// was unmapped or mapped anew, and 0 while not all of it is mapped.
	Mapping(iova, n uint64) uint64

	// Signal raises an interrupt vector: MSI-X or INTx, whatever is enabled.
	Signal(vector int)
	// Event sets bits of EVENTS (SPEC.md §9.3).
	Event(bits uint32)
}

// QueueConfig is what create takes from the queue's registers (SPEC.md §3.2).
type QueueConfig struct {
	In, Out, Event  uint64
	InLog2, OutLog2 uint8
	Vector          int
}

// QueueStatus is what the queue's read-only registers show.
type QueueStatus struct {
	State    abi.QueueState
	Last     abi.Status // of the last command
	InIndex  abi.Index
	OutIndex abi.Index
	Held     uint32
	Error    uint32
}

// Config says what a firmware works with. Chip and Engine are needed.
type Config struct {
	Chip Chip
	// Engine is used, not owned: Close leaves it open.
	Engine engine.Engine

	// Generation is how often the firmware was started (SPEC.md §3).
	Generation uint32
	// Name and Serial are the attributes FIRMWARE and SERIAL.
	Name, Serial string
	MAC          [6]byte
	// MTU is the port's.
	MTU int
	// NoLink says that the port leads nowhere: attribute LINK.
	NoLink bool
	// Addresses, routes and domain are the attributes' values at reset. The
	// engine was given the same by whoever made it.
	Address4, Address6 abi.Address
	Routes             []Route
	Resolvers          []abi.Address
	Domain             string
	// Defaults are scalar attributes from the non-volatile image.
	Defaults map[abi.Attribute]uint64

	// Clock is monotonic time since a start of the caller's choice; nil means
	// the system's. Time limits and the real policy clock read it.
	Clock func() time.Duration
	// Spin is how long an idle worker looks at its tables before it sleeps;
	// 0 means not at all.
	Spin   time.Duration
	Logger *slog.Logger
}

// Route is an entry of the attribute ROUTES: an invalid gateway address means
// that the destination is on the link.
type Route struct {
	Destination, Gateway abi.Address
}
