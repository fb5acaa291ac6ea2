// SPDX-License-Identifier: Apache-2.0

package sample

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/pci"
)

const (
	barSize   = 0x4000 // of each BAR
	alarmSize = 8
	bar1Size  = 0x3000 // of BAR1 that is memory
	stateSize = bar1Size + alarmSize

	pageSize  = 4096
	chunkSize = 1024 // of DMA

	maxFDs = 8 // the client sample makes twice as many DMA maps
)

// Clock is the time. Functions that AfterFunc calls have a goroutine of their
// own.
type Clock interface {
	Now() time.Time
	AfterFunc(d time.Duration, f func()) (stop func() bool)
}

type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) AfterFunc(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }

// Config describes a device.
type Config struct {
	Clock  Clock        // nil: the machine's
	Logger *slog.Logger // as vfiouser.Config.Logger; also told of the device's DMA
}

// Device is the device, with its server. It can be migrated.
type Device struct {
	fn    *pci.Function
	srv   *vfiouser.Server
	bar1  *vfiouser.Shared
	clock Clock
	log   *slog.Logger
	work  sync.WaitGroup // the transfer that runs

	mu      sync.Mutex
	closed  bool
	running bool        // as opposed to being migrated
	alarm   int64       // seconds since 1970; 0: none
	stop    func() bool // ends the timer; nil: there is none
	set     uint64      // counts the timers
	busy    bool        // a transfer runs
	again   bool        // another one is due
	stats   Stats

	saved  int    // bytes of state that have been read
	loaded []byte // state that has been written
}

// Stats counts what the alarm did.
type Stats struct {
	Alarms, Direct, Messages uint64 // of those, transfers that were right
	Failed                   uint64 // transfers that were not
}

var _ vfiouser.Precopier = (*Device)(nil)

// New returns a device that no client has connected to yet.
func New(cfg Config) (*Device, error) {
	d := &Device{clock: cfg.Clock, log: cfg.Logger, running: true}
	if d.clock == nil {
		d.clock = realClock{}
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if d.bar1, err = vfiouser.NewShared(bar1Size); err != nil {
		return nil, fmt.Errorf("sample: %w", err)
	}
	if d.fn, err = pci.New(d.describe()); err == nil {
		c := d.fn.ServerConfig()
		c.Regions[vfiouser.RegionBAR1].Areas = []vfiouser.Area{d.bar1.Area(0)}
		c.MaxFDs = maxFDs
		c.Logger = cfg.Logger
		d.srv, err = vfiouser.NewServer(d, c)
	}
	if err != nil {
		d.bar1.Close()
		return nil, fmt.Errorf("sample: %w", err)
	}
	d.fn.Connect(d.srv)
	return d, nil
}

// describe declares the function. Its client sets neither memory space nor bus
// master in Command, and expects both.
func (d *Device) describe() pci.Config {
	c := pci.Config{
		Vendor: 0xdead, Device: 0xbeef, SubsystemVendor: 0xcafe, Subsystem: 0xbabe, Class: 0xff0000, Pin: 1,
		IgnoreCommand: true,
		Reset:         func(pci.ResetKind) { d.reset() },
		Disconnected:  func() {}, // the next client finds the device as it is
	}
	c.BARs[0] = pci.BAR{Size: barSize, Read: d.readAlarm, Write: d.writeAlarm}
	c.BARs[1] = pci.BAR{Size: barSize, Read: d.readMemory, Write: d.writeMemory}
	return c
}

// Server returns what serves the device.
func (d *Device) Server() *vfiouser.Server { return d.srv }

// Stats returns the counts.
func (d *Device) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Close waits for what the device still does; that is bounded by the server's
// DMA time-out. The server must not be serving any more.
func (d *Device) Close() error {
	d.mu.Lock()
	d.closed = true
	d.disarmLocked()
	d.mu.Unlock()
	d.fn.Close()
	d.work.Wait()
	return d.bar1.Close()
}

// ReadRegion implements vfiouser.Device.
func (d *Device) ReadRegion(region int, offset uint64, p []byte) error {
	return d.fn.ReadRegion(region, offset, p)
}

// WriteRegion implements vfiouser.Device.
func (d *Device) WriteRegion(region int, offset uint64, p []byte) error {
	return d.fn.WriteRegion(region, offset, p)
}

// Reset implements vfiouser.Device.
func (d *Device) Reset() error { return d.fn.Reset() }

// Disconnected implements vfiouser.Device.
func (d *Device) Disconnected() { d.fn.Disconnected() }

// reset is a reset of the function, from migration too.
func (d *Device) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disarmLocked()
	d.alarm, d.running, d.saved, d.loaded = 0, true, 0, nil
	_, _ = d.bar1.WriteAt(make([]byte, bar1Size), 0) // fails only once closed
}

// readAlarm is a read of BAR0.
func (d *Device) readAlarm(offset uint64, p []byte) {
	clear(p)
	d.mu.Lock()
	defer d.mu.Unlock()
	if offset < alarmSize {
		var b [alarmSize]byte
		binary.LittleEndian.PutUint64(b[:], uint64(d.clock.Now().Unix()-d.alarm))
		copy(p, b[offset:])
		d.fn.SetINTx(false)
	}
}

// writeAlarm is a write to BAR0. While the device is being migrated the alarm
// waits.
func (d *Device) writeAlarm(offset uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if offset != 0 || len(p) < alarmSize {
		return
	}
	d.alarm = int64(binary.LittleEndian.Uint64(p))
	d.fn.SetINTx(false)
	if d.running {
		d.armLocked()
	}
}

// readMemory is a read of BAR1 by message.
func (d *Device) readMemory(offset uint64, p []byte) {
	clear(p)
	if offset < bar1Size {
		n := min(uint64(len(p)), bar1Size-offset)
		_, _ = d.bar1.ReadAt(p[:n], int64(offset)) // fails only once closed
	}
}

// writeMemory is a write to BAR1 by message.
func (d *Device) writeMemory(offset uint64, p []byte) {
	if offset < bar1Size {
		n := min(uint64(len(p)), bar1Size-offset)
		_, _ = d.bar1.WriteAt(p[:n], int64(offset)) // fails only once closed
	}
}

// armLocked starts the timer for the alarm, if there is one.
func (d *Device) armLocked() {
	d.disarmLocked()
	if d.alarm == 0 || d.closed {
		return
	}
	set := d.set
	d.stop = d.clock.AfterFunc(max(0, time.Unix(d.alarm, 0).Sub(d.clock.Now())), func() { d.expire(set) })
}

func (d *Device) disarmLocked() {
	d.set++ // a timer that has run out already finds that it is not meant
	if d.stop != nil {
		d.stop()
		d.stop = nil
	}
}

// expire is the end of a timer. However often that comes, one transfer runs at
// a time.
func (d *Device) expire(set uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.set != set || d.closed {
		return
	}
	d.stats.Alarms++
	d.fn.SetINTx(true)
	if d.again = d.busy; !d.busy {
		d.busy = true
		d.work.Go(d.transfer)
	}
}

// transfer is what follows an alarm.
func (d *Device) transfer() {
	for more := true; more; {
		first, second, ok := d.pages()
		if ok {
			d.count("direct", second, d.direct(second), &d.stats.Direct)
			d.count("by message", first, d.messages(first), &d.stats.Messages)
		}
		d.mu.Lock()
		more = d.again && !d.closed
		d.again, d.busy = false, more
		d.mu.Unlock()
	}
}

// count tells and counts what became of a transfer.
func (d *Device) count(how string, iova uint64, err error, right *uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		*right++
		d.log.Info("sample: dma", "how", how, "iova", iova)
		return
	}
	d.stats.Failed++
	d.log.Warn("sample: dma", "how", how, "iova", iova, "err", err)
}

// pages returns the two pages that the client has meant for DMA.
func (d *Device) pages() (first, second uint64, ok bool) {
	n := 0
	for m := range d.srv.DMA().Maps() {
		if m.Size != pageSize || m.Prot != vfiouser.ProtRead|vfiouser.ProtWrite || !m.Backed {
			continue
		}
		if n++; n == 2 {
			return first, m.IOVA, true
		}
		first = m.IOVA
	}
	return 0, 0, false
}

// errStopped says that the device must not do any more.
var errStopped = errors.New("sample: the device was stopped")

// chunk returns the bytes that go to chunk i of a page.
func chunk(i int) []byte { return bytes.Repeat([]byte{'A' + byte(i)}, chunkSize) }

// direct writes a page of guest memory and reads it back, under the lock, so that
// the device does not stop meanwhile. It uses what never is a message.
func (d *Device) direct(iova uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.running {
		return errStopped
	}
	dma := d.srv.DMA()
	var want, got []byte
	for i := range pageSize / chunkSize {
		b := chunk(i)
		want = append(want, b...)
		err := dma.View(iova+uint64(i*chunkSize), chunkSize, vfiouser.ProtWrite, func(p []byte) error {
			b = b[copy(p, b):]
			return nil
		})
		if err != nil {
			return err
		}
	}
	err := dma.View(iova, pageSize, vfiouser.ProtRead, func(p []byte) error {
		got = append(got, p...)
		return nil
	})
	return compare(got, want, err)
}

// messages has the client write a page and read it back.
func (d *Device) messages(iova uint64) error {
	dma := d.srv.DMA()
	var want, got []byte
	for i := range pageSize / chunkSize {
		want = append(want, chunk(i)...)
		if !d.isRunning() {
			return errStopped
		}
		if err := dma.WriteByMessage(iova+uint64(i*chunkSize), chunk(i)); err != nil {
			return err
		}
	}
	for i := range pageSize / chunkSize / 2 {
		if !d.isRunning() {
			return errStopped
		}
		b := make([]byte, 2*chunkSize)
		if err := dma.ReadByMessage(iova+uint64(2*i*chunkSize), b); err != nil {
			return err
		}
		got = append(got, b...)
	}
	return compare(got, want, nil)
}

func (d *Device) isRunning() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running && !d.closed
}

func compare(got, want []byte, err error) error {
	if err == nil && !slices.Equal(got, want) {
		err = errors.New("sample: memory does not hold what was written")
	}
	return err
}

// Migrate implements vfiouser.Migrator.
func (d *Device) Migrate(from, to vfiouser.MigrationState) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if from == vfiouser.StateResuming {
		if len(d.loaded) != stateSize {
			return fmt.Errorf("sample: %d bytes of state: %w", len(d.loaded), syscall.EINVAL)
		}
		if _, err := d.bar1.WriteAt(d.loaded[:bar1Size], 0); err != nil {
			return err
		}
		d.alarm = int64(binary.LittleEndian.Uint64(d.loaded[bar1Size:]))
	}
	d.saved, d.loaded = 0, nil
	running := to == vfiouser.StateRunning || to == vfiouser.StatePrecopy
	if running == d.running {
		return nil
	}
	d.running = running
	if running {
		d.armLocked()
	} else {
		d.disarmLocked()
	}
	return nil
}

// ReadState implements vfiouser.Migrator.
func (d *Device) ReadState(p []byte) (n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.saved < bar1Size {
		n = min(len(p), bar1Size-d.saved)
		if _, err := d.bar1.ReadAt(p[:n], int64(d.saved)); err != nil {
			return 0, err
		}
	}
	if at := d.saved + n - bar1Size; !d.running && at >= 0 {
		b := binary.LittleEndian.AppendUint64(nil, uint64(d.alarm))
		n += copy(p[n:], b[at:])
	}
	d.saved += n
	return n, nil
}

// WriteState implements vfiouser.Migrator.
func (d *Device) WriteState(p []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(p) > stateSize-len(d.loaded) {
		return fmt.Errorf("sample: %d bytes of state, and %d: %w", len(d.loaded), len(p), syscall.EINVAL)
	}
	d.loaded = append(d.loaded, p...)
	return nil
}

// PrecopyInfo implements vfiouser.Precopier.
func (d *Device) PrecopyInfo() (initial, dirty uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return uint64(bar1Size - d.saved), 0
}
