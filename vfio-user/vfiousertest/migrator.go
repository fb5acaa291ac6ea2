// SPDX-License-Identifier: Apache-2.0

package vfiousertest

import (
	"bytes"
	"sync"

	vfiouser "toebox/vfio-user"
)

// Migrator is a Device that can be moved: its state is a string of bytes.
type Migrator struct {
	*Device

	mu     sync.Mutex
	out    []byte // still to be read
	in     []byte // written
	fail   map[vfiouser.MigrationState]error
	cannot error // of ReadState and WriteState
}

// NewMigrator returns a device with memory for the regions of cfg.
func NewMigrator(cfg vfiouser.Config) *Migrator {
	return &Migrator{Device: NewDevice(cfg), fail: make(map[vfiouser.MigrationState]error)}
}

// SetState says what ReadState has to give from now on.
func (d *Migrator) SetState(p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out = bytes.Clone(p)
}

// Written returns what WriteState was given since the last time.
func (d *Migrator) Written() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.in
	d.in = nil
	return p
}

// Fail has arcs to a state fail with err, or not if it is nil.
func (d *Migrator) Fail(to vfiouser.MigrationState, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail[to] = err
}

// FailData has ReadState and WriteState fail with err, or not if it is nil.
func (d *Migrator) FailData(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cannot = err
}

// Migrate implements vfiouser.Migrator. Calls has "migrate FROM TO".
func (d *Migrator) Migrate(from, to vfiouser.MigrationState) error {
	d.Device.mu.Lock()
	d.note("migrate %v %v", from, to)
	d.Device.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fail[to]
}

// ReadState implements vfiouser.Migrator.
func (d *Migrator) ReadState(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := copy(p, d.out)
	for i := n; i < len(p); i++ {
		p[i] = 0xee // as a reader may
	}
	d.out = d.out[n:]
	return n, d.cannot
}

// WriteState implements vfiouser.Migrator.
func (d *Migrator) WriteState(p []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.in = append(d.in, p...)
	return d.cannot
}

// Precopier is a Migrator whose state can be read while it runs.
type Precopier struct{ *Migrator }

// PrecopyInfo implements vfiouser.Precopier: what there is to read, and 7.
func (d Precopier) PrecopyInfo() (initial, dirty uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return uint64(len(d.out)), 7
}
