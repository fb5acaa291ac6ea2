// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
)

// MigrationState is where a device is in being moved to another server.
//
//	            stop              save
//	RUNNING <---------> STOP <-----------> STOP_COPY
//	   ^        start    ^     end of data     ^
//	   |                 |                     |
//	   | save,           | load,               | stop
//	   | end of data     | end of data         |
//	   v                 v                     |
//	PRE_COPY          RESUMING                 |
//	   |                                       |
//	   +---------------------------------------+
//
// A device runs in RUNNING and PRE_COPY and stands still in the others. Its
// state is read out in PRE_COPY and STOP_COPY and written in RESUMING. ERROR is
// where an arc leads that could neither be followed nor given up; only a reset
// leaves it, and a reset leads to RUNNING from everywhere.
type MigrationState uint32

// States of a device (VFIO_DEVICE_STATE_*). vfio-user does not use those with
// peer-to-peer DMA held back, 5 and 7.
const (
	StateError    MigrationState = 0
	StateStop     MigrationState = 1
	StateRunning  MigrationState = 2
	StateStopCopy MigrationState = 3
	StateResuming MigrationState = 4
	StatePrecopy  MigrationState = 6
)

// String returns the specification's name of the state.
func (s MigrationState) String() string {
	switch s {
	case StateError:
		return "ERROR"
	case StateStop:
		return "STOP"
	case StateRunning:
		return "RUNNING"
	case StateStopCopy:
		return "STOP_COPY"
	case StateResuming:
		return "RESUMING"
	case StatePrecopy:
		return "PRE_COPY"
	}
	return fmt.Sprintf("state %d", uint32(s))
}

// ErrStateLost in the error of [Migrator.Migrate] says that the device is in no
// state any more: it is in ERROR from then on.
var ErrStateLost = errors.New("device state is lost")

// Migrator is a [Device] that can be moved to another server. The server keeps
// the state machine: it calls the device for arcs that exist only, one after
// another where the client asks for more than one, and for data in the states
// that have any. A reset takes the device to StateRunning and ends a transfer; of
// one that is not [Device.Reset] the device tells by [Server.DeviceReset].
// The calls come from where those of Device come, and the same rules hold.
//
// In StateStop, StateStopCopy and StateResuming a device must not change of its
// own accord, access guest memory or signal an interrupt. An access that is under
// way when the device is to stop has to end first; accesses by message may end
// by themselves, as the client that answers them knows of them.
type Migrator interface {
	Device
	// Migrate takes the device from one state to the next. With an error it
	// stays where it was, or with ErrStateLost it has failed.
	Migrate(from, to MigrationState) error
	// ReadState fills p with the next bytes of the device's state. Less than
	// len(p) says that there is no more: at all in StateStopCopy, for the moment
	// in StatePrecopy. io.EOF is not an error.
	ReadState(p []byte) (n int, err error)
	// WriteState takes the next bytes of a device's state, as ReadState gave
	// them. Whether they make sense may turn out when StateResuming is left.
	WriteState(p []byte) error
}

// Precopier is a [Migrator] whose state can be read out while it runs, so that
// less is left for when it has stopped.
type Precopier interface {
	Migrator
	// PrecopyInfo estimates how many bytes ReadState has for StatePrecopy:
	// those that everyone should read first, and what has changed since.
	PrecopyInfo() (initial, dirty uint64)
}

// migration is the state machine of a device. It belongs to the goroutine that
// serves the connection, but for resets of the device.
type migration struct {
	dev     Migrator  // nil: the device stays where it is
	precopy Precopier // nil: it has no StatePrecopy
	now     atomic.Uint32
}

func newMigration(dev Device) *migration {
	m := new(migration)
	m.enter(StateRunning)
	m.dev, _ = dev.(Migrator)
	m.precopy, _ = dev.(Precopier)
	return m
}

func (m *migration) state() MigrationState  { return MigrationState(m.now.Load()) }
func (m *migration) enter(s MigrationState) { m.now.Store(uint32(s)) }

// next returns the first state on the shortest way between two different ones
// that does not lead through a state in which data is read out.
func (m *migration) next(from, to MigrationState) (MigrationState, bool) {
	switch to {
	case StateStop, StateRunning, StateStopCopy, StateResuming:
	case StatePrecopy:
		if m.precopy == nil || from == StateStopCopy {
			return 0, false
		}
	default:
		return 0, false
	}
	switch from {
	case StateRunning:
		if to == StatePrecopy {
			return to, true
		}
		return StateStop, true
	case StateStop:
		if to == StateStopCopy || to == StateResuming {
			return to, true
		}
		return StateRunning, true
	case StatePrecopy:
		if to == StateStopCopy {
			return to, true
		}
		return StateRunning, true
	case StateStopCopy, StateResuming:
		return StateStop, true
	}
	return 0, false // ERROR
}

// set takes the device to a state. If an arc on the way fails, the device is
// where that began, or in ERROR.
func (m *migration) set(to MigrationState) error {
	for from := m.state(); from != to || to == StateError; from = m.state() {
		next, ok := m.next(from, to)
		if !ok {
			return fmt.Errorf("from %v to %v: %w", from, to, syscall.EINVAL)
		}
		if err := m.dev.Migrate(from, next); err != nil {
			err = fmt.Errorf("from %v to %v: %w", from, next, err)
			if errors.Is(err, ErrStateLost) {
				m.enter(StateError)
			}
			return err
		}
		m.enter(next)
	}
	return nil
}

// stateData opens request and reply of VFIO_USER_MIG_DATA_READ and _WRITE; data
// follows where there is any.
type stateData struct{ argsz, size uint32 }

const stateDataSize = 8

func (m stateData) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint32(b, m.argsz)
	return binary.NativeEndian.AppendUint32(b, m.size), nil
}

func (m *stateData) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = stateData{c.u32(), c.u32()}
	return c.err()
}

// precopyInfo is request and reply of VFIO_USER_GET_PRECOPY_INFO.
type precopyInfo struct {
	argsz, flags   uint32
	initial, dirty uint64
}

const precopyInfoSize = 24

func (m precopyInfo) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint32(b, m.argsz)
	b = binary.NativeEndian.AppendUint32(b, m.flags)
	b = binary.NativeEndian.AppendUint64(b, m.initial)
	return binary.NativeEndian.AppendUint64(b, m.dirty), nil
}

func (m *precopyInfo) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = precopyInfo{c.u32(), c.u32(), c.u64(), c.u64()}
	return c.err()
}

// stateTransfer judges the fixed part of a request for migration data. The
// specification's argsz is "the size of the above structure": with some clients
// that counts the data, with some it does not.
func (c *conn) stateTransfer(m *message) (r stateData, err error) {
	mig := c.srv.migration
	switch err := r.UnmarshalBinary(m.payload); {
	case mig.dev == nil:
		return r, fmt.Errorf("a device that does not migrate: %w", syscall.ENOTSUP)
	case err != nil, r.argsz != stateDataSize && uint64(r.argsz) < stateDataSize+uint64(r.size):
		return r, fmt.Errorf("argsz %d size %d in %d bytes: %w", r.argsz, r.size, len(m.payload), syscall.EINVAL)
	case int64(r.size) > int64(c.limits.maxTransfer):
		return r, fmt.Errorf("%d bytes of migration data: %w", r.size, syscall.E2BIG)
	}
	return r, nil
}

// readState answers with as many bytes as were asked for, however many of them
// are data: one client insists, the others look at size.
func (c *conn) readState(m *message) error {
	r, err := c.stateTransfer(m)
	if err != nil {
		return err
	}
	mig := c.srv.migration
	if mig.state() != StatePrecopy && mig.state() != StateStopCopy {
		return fmt.Errorf("migration data in %v: %w", mig.state(), syscall.EINVAL)
	}
	start := len(c.out)
	c.out = append(c.out, make([]byte, stateDataSize+int(r.size))...)
	n := 0
	if r.size > 0 {
		// The device fills the reply in place.
		p := c.out[start+stateDataSize:]
		n, err = mig.dev.ReadState(p)
		switch {
		case n < 0 || n > len(p):
			return fmt.Errorf("device has %d bytes of %d: %w", n, len(p), syscall.EIO)
		case err != nil && err != io.EOF:
			return err
		}
		clear(p[n:])
	}
	_, _ = stateData{stateDataSize + uint32(n), uint32(n)}.AppendBinary(c.out[start:start])
	return nil
}

func (c *conn) writeState(m *message) error {
	r, err := c.stateTransfer(m)
	if err != nil {
		return err
	}
	data := m.payload[stateDataSize:]
	mig := c.srv.migration
	switch {
	case mig.state() != StateResuming:
		return fmt.Errorf("migration data in %v: %w", mig.state(), syscall.EINVAL)
	case uint64(r.size) != uint64(len(data)):
		return fmt.Errorf("%d bytes of migration data with %d: %w", r.size, len(data), syscall.EINVAL)
	case r.size > 0:
		if err := mig.dev.WriteState(data); err != nil {
			return err
		}
	}
	c.out, _ = stateData{stateDataSize, r.size}.AppendBinary(c.out)
	return nil
}

func (c *conn) precopyInfo(m *message) error {
	mig := c.srv.migration
	if mig.precopy == nil {
		return fmt.Errorf("a device without PRE_COPY: %w", syscall.ENOTSUP)
	}
	var r precopyInfo
	if err := r.UnmarshalBinary(m.payload); err != nil || r.argsz < precopyInfoSize {
		return fmt.Errorf("argsz %d in %d bytes: %w", r.argsz, len(m.payload), syscall.EINVAL)
	}
	if mig.state() != StatePrecopy {
		return fmt.Errorf("precopy info in %v: %w", mig.state(), syscall.EINVAL)
	}
	initial, dirty := mig.precopy.PrecopyInfo()
	c.out, _ = precopyInfo{precopyInfoSize, 0, initial, dirty}.AppendBinary(c.out)
	return nil
}
