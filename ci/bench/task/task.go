// SPDX-License-Identifier: Apache-2.0

package task

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Side is one of the two devices of the guest.
type Side string

// Sides.
const (
	Virtio  Side = "virtio"  // virtio-net-pci and the guest kernel's TCP
	Adapter Side = "adapter" // the adapter and its driver
)

// Kind is what is measured.
type Kind string

// Kinds.
const (
	SetUp   Kind = "setup"   // nothing: the device is opened and has its address, Peer with its prefix length
	Send    Kind = "send"    // write to Peer as fast as it goes
	Receive Kind = "receive" // read what Peer writes
	Echo    Kind = "echo"    // Size bytes to Peer and back, one exchange after another
	Connect Kind = "connect" // connect to Peer and close, one after another
	Accept  Kind = "accept"  // accept from Peer, at AcceptPort, and close, one after another
	Bulk    Kind = "bulk"    // of the adapter: connect to Peer Conns times at once
	Idle    Kind = "idle"    // connect to Peer Conns times, and tell what that takes
	Map     Kind = "map"     // of the adapter: have it see Size bytes of memory
)

// AcceptPort is where the guest listens.
const AcceptPort = 7000

// Modes of the driver (guestdriver.Mode).
const (
	Interrupt = "interrupt"
	Hybrid    = "hybrid"
	Poll      = "poll"
)

// Limits of a task.
const (
	MaxConns = 1 << 14
	MaxSize  = 256 << 20        // bytes
	MaxTime  = 10 * time.Minute // of a measurement
	MaxLine  = 64 << 10         // bytes
)

// Task is one measurement.
type Task struct {
	Side   Side          `json:"side"`
	Kind   Kind          `json:"kind"`
	Peer   string        `json:"peer,omitempty"`   // host:port
	Conns  int           `json:"conns,omitempty"`  // connections at once
	Size   int           `json:"size,omitempty"`   // bytes of a write, read or message
	Direct bool          `json:"direct,omitempty"` // of the adapter: without copies by the host; in huge pages
	Mode   string        `json:"mode,omitempty"`   // of the adapter; empty: hybrid
	Warm   time.Duration `json:"warm,omitempty"`   // before the measurement, ns
	For    time.Duration `json:"for,omitempty"`    // how long it takes, ns
}

// Check says what is wrong with a task.
func (t *Task) Check() error {
	switch {
	case t.Side != Virtio && t.Side != Adapter:
		return fmt.Errorf("task: side %q", t.Side)
	case t.Conns < 0 || t.Conns > MaxConns:
		return fmt.Errorf("task: %d connections", t.Conns)
	case t.Size < 0 || t.Size > MaxSize:
		return fmt.Errorf("task: size %d", t.Size)
	case t.Warm < 0 || t.For < 0 || t.Warm > MaxTime || t.For > MaxTime:
		return fmt.Errorf("task: %v after %v", t.For, t.Warm)
	}
	switch t.Kind {
	case SetUp:
	case Bulk:
		if t.Side != Adapter || t.Conns == 0 {
			return fmt.Errorf("task: %s of %d connections over %s", t.Kind, t.Conns, t.Side)
		}
	case Idle:
		if t.Conns == 0 {
			return fmt.Errorf("task: %s on no connections", t.Kind)
		}
	case Map:
		if t.Side != Adapter || t.Size == 0 {
			return fmt.Errorf("task: %s of %d bytes over %s", t.Kind, t.Size, t.Side)
		}
	case Send, Receive, Echo, Connect, Accept:
		if t.For == 0 {
			return fmt.Errorf("task: %s for no time", t.Kind)
		}
		if t.Kind != Connect && t.Kind != Accept && (t.Size == 0 || t.Conns == 0) {
			return fmt.Errorf("task: %s of %d bytes on %d connections", t.Kind, t.Size, t.Conns)
		}
	default:
		return fmt.Errorf("task: kind %q", t.Kind)
	}
	switch t.Mode {
	case "", Interrupt, Hybrid, Poll:
		return nil
	}
	return fmt.Errorf("task: mode %q", t.Mode)
}

// Result is what the guest counted. Times are in nanoseconds.
type Result struct {
	Bytes      uint64        `json:"bytes,omitempty"`     // of payload
	Ops        uint64        `json:"ops,omitempty"`       // exchanges, connections
	Elapsed    time.Duration `json:"elapsed"`             // of the measurement
	Busy       time.Duration `json:"busy"`                // of all processors of the guest, the kernel's included
	Own        time.Duration `json:"own"`                 // of the measuring program's
	Interrupts uint64        `json:"interrupts"`          // of the device, from the guest kernel's own list
	Doorbells  uint64        `json:"doorbells,omitempty"` // of the adapter; nobody counts virtio's
	Median     time.Duration `json:"median,omitempty"`    // of an operation
	Heap       int64         `json:"heap,omitempty"`      // bytes of the program's data that connections take
	Memory     int64         `json:"memory,omitempty"`    // ... of the guest's memory
	P99        time.Duration `json:"p99,omitempty"`       // as above
}

// Answer is a line from the guest.
type Answer struct {
	Begun  bool    `json:"begun,omitempty"`
	Result *Result `json:"result,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// Lines reads and writes lines of JSON.
type Lines struct {
	r *bufio.Scanner
	w io.Writer
}

// NewLines returns lines over a pair of streams.
func NewLines(r io.Reader, w io.Writer) *Lines {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), MaxLine)
	return &Lines{r: s, w: w}
}

// Read reads a line into v. At the end of the stream it returns io.EOF.
func (l *Lines) Read(v any) error {
	if !l.r.Scan() {
		if err := l.r.Err(); err != nil {
			return fmt.Errorf("task: %w", err)
		}
		return io.EOF
	}
	if err := json.Unmarshal(l.r.Bytes(), v); err != nil {
		return fmt.Errorf("task: %w", err)
	}
	return nil
}

// Write writes v as a line.
func (l *Lines) Write(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("task: %w", err)
	}
	if _, err = l.w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("task: %w", err)
	}
	return nil
}
