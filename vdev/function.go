// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"toebox/firmware/chip"
	"toebox/vdev/abi"
	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/pci"
)

// Firmware is what the function drives; *firmware.Firmware implements it.
// Nothing here waits for the guest.
type Firmware interface {
	Run()
	Stop()
	Running() bool
	Stopped() bool
	Command(q int, c abi.QueueCommand, cfg chip.QueueConfig) abi.Status
	QueueStatus(q int) chip.QueueStatus
	Doorbell(q int, index abi.Index)
	DoorbellOut(q int, index abi.Index)
	// Reset returns when nothing is written to the old tables any more.
	Reset()
	SetPolicyClock(manual bool)
	StepPolicyClock(ns uint64)
	PolicyNow() uint64
	SetChecker(on bool)
	// Wrote says that the function itself wrote to host memory.
	Wrote(iova, n uint64)
	Close() error
}

// Counters are the counters of SPEC.md §13, which firmware and function share;
// *firmware.Counters implements it.
type Counters interface {
	Add(c abi.Counter, n uint64)
	Load(c abi.Counter) uint64
}

// StartFirmware makes the firmware of an adapter. It is called once by New and
// again at the first reset after the non-volatile image changed.
type StartFirmware func(c chip.Chip, id Identity, generation uint32) (Firmware, Counters, error)

// Config configures a function.
type Config struct {
	// Start makes the firmware.
	Start StartFirmware
	// DMA and IRQs are the client's side. They may be nil and given later by
	// [Function.Connect].
	DMA  DMA
	IRQs IRQs
	// NVMPath is the file of the non-volatile image; empty: memory only.
	NVMPath string
	// Generation is how often the firmware of this adapter was started,
	// this start included. 0 means 1.
	Generation uint32
	// Link says whether the port's link is up.
	Link bool
	// Seed gives the factory's MAC address and serial number.
	Seed uint64
	// Clock is monotonic time; nil: time since New.
	Clock func() time.Duration
	// Logger gets what guests do wrong, at a bounded rate. nil: nothing.
	Logger *slog.Logger
}

// FirmwareName is the identity of the firmware in a factory image.
const FirmwareName = "toebox 1.0"

// core is the running firmware. A new one replaces it as a whole.
type core struct {
	firmware   Firmware
	counters   Counters
	generation uint32
	id         uint32        // FW_ID
	started    time.Duration // on the function's clock
}

// Function is the PCI function. It implements [vfiouser.Device] towards the
// client and [chip.Chip] towards the firmware.
type Function struct {
	start    StartFirmware
	clock    func() time.Duration
	log      *slog.Logger
	limit    limiter
	file     *registerFile
	running  atomic.Pointer[core]
	dma      atomic.Pointer[DMA]
	irq      interrupts
	messages messages
	link     atomic.Bool
	pci      *pci.Function
	work     sync.WaitGroup

	mu          sync.Mutex
	closed      bool
	regs        [globalSlots]uint32
	queues      [abi.MaxQueues][queueSlots]uint32
	identity    Identity
	loaded      *nvmImage // the image that identity came from
	nvm         nvm
	test        testDMA
	failed      bool   // firmware could not be started at the last reset
	checkerBase uint64 // checker violations at the last reset
}

var _ vfiouser.Device = (*Function)(nil)

// New makes a function in its power-on state and starts its firmware.
func New(cfg Config) (*Function, error) {
	if cfg.Start == nil {
		return nil, errors.New("vdev: no firmware to start")
	}
	f := &Function{
		start: cfg.Start, clock: cfg.Clock, log: cfg.Logger,
		file: newRegisterFile(),
	}
	var err error
	if f.pci, err = pci.New(f.describe()); err != nil {
		return nil, fmt.Errorf("vdev: %w", err)
	}
	f.irq.pci = f.pci
	if f.clock == nil {
		began := time.Now()
		f.clock = func() time.Duration { return time.Since(began) }
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.link.Store(cfg.Link)
	f.Connect(cfg.DMA, cfg.IRQs)

	factory := encodeNVM(factoryIdentity(cfg.Seed))
	image, corrupt, err := loadNVM(cfg.NVMPath, factory)
	if err != nil {
		return nil, err
	}
	f.nvm = nvm{path: cfg.NVMPath, factory: factory, committed: image}
	events := uint32(abi.EventFirmware)
	if corrupt {
		f.log.Warn("non-volatile image was corrupt: replaced by factory defaults", "path", cfg.NVMPath)
		f.nvm.corrupt = abi.NVMCorrupt
		events |= abi.EventNVM
	}
	f.nvm.reset()
	f.messages.begin()
	f.resetRegisters()
	f.irq.reset(true, events)
	if err := f.startLocked(max(cfg.Generation, 1)); err != nil {
		return nil, err
	}
	return f, nil
}

// Connect sets the client's side, before the first access.
func (f *Function) Connect(dma DMA, irqs IRQs) {
	if dma != nil {
		f.dma.Store(&dma)
	}
	if irqs != nil {
		f.pci.Connect(irqs)
	}
}

// factoryIdentity derives a locally administered address and a serial number
// from the seed.
func factoryIdentity(seed uint64) Identity {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], seed)
	sum := sha256.Sum256(b[:])
	id := Identity{Name: FirmwareName, Serial: "TB-" + hex.EncodeToString(sum[8:14])}
	copy(id.MAC[:], sum[:6])
	id.MAC[0] = id.MAC[0]&^1 | 2
	return id
}

func (f *Function) core() *core { return f.running.Load() }

func (f *Function) count(c abi.Counter) {
	if r := f.core(); r != nil { // nil while the first firmware starts
		r.counters.Add(c, 1)
	}
}

func (f *Function) load(c abi.Counter) uint64 { return f.core().counters.Load(c) }

// Counter returns a counter of SPEC.md §13.
func (f *Function) Counter(c abi.Counter) uint64 { return f.load(c) }

// Counters returns all counters by name.
func (f *Function) Counters() map[string]uint64 {
	m := make(map[string]uint64, abi.NumCounters)
	for c := range abi.Counter(abi.NumCounters) {
		m[c.String()] = f.load(c)
	}
	return m
}

// RefusedInterrupts returns how many interrupts were lost because the client's
// side refused them.
func (f *Function) RefusedInterrupts() uint64 { return f.pci.Refused() }

// Identity returns what the non-volatile image said at the last reset.
func (f *Function) Identity() Identity {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.identity
}

// Generation returns the GENERATION register.
func (f *Function) Generation() uint32 { return f.core().generation }

// startLocked starts firmware on the committed image.
func (f *Function) startLocked(generation uint32) error {
	id, err := f.nvm.committed.decode()
	if err != nil {
		return fmt.Errorf("vdev: non-volatile image: %w", err)
	}
	fw, counters, err := f.start(f, id, generation)
	if err != nil {
		return fmt.Errorf("vdev: start firmware: %w", err)
	}
	f.identity, f.loaded = id, f.nvm.committed
	f.setSerial(id.MAC)
	f.running.Store(&core{
		firmware: fw, counters: counters, generation: generation,
		id: crc32.ChecksumIEEE([]byte(id.Name)), started: f.clock(),
	})
	return nil
}

// SetLink reports the state of the port's link.
func (f *Function) SetLink(up bool) {
	if f.link.Swap(up) != up {
		f.Event(abi.EventLink)
	}
}

// resetLocked is every kind of reset (SPEC.md §11.3). function: configuration
// space and MSI-X table get their reset values after it, it is a function-level
// or device reset.
//
// The order matters. DMA by message is abandoned first, so that no worker
// waits for the client, who may be waiting for this very register access; then
// the firmware and the test registers end what they do; then state goes.
func (f *Function) resetLocked(function bool) {
	if f.closed {
		return
	}
	f.resetFirmwareLocked(function, f.loaded != f.nvm.committed)
}

// resetFirmwareLocked resets the firmware, or puts new one in its place.
func (f *Function) resetFirmwareLocked(function, anew bool) {
	f.messages.end()
	c := f.core()
	c.firmware.Reset()
	f.test.reset()
	f.messages.begin()
	c.counters.Add(abi.CounterResetsFunction, 1)

	if anew {
		f.restartLocked()
	}
	f.nvm.reset()
	f.resetRegisters()
	f.checkerBase = f.load(abi.CounterCheckerViolations)
	if f.irq.reset(function, abi.EventFirmware) {
		f.count(abi.CounterInterrupts)
	}
}

// restartLocked replaces the firmware by one with the identity of the image
// that was committed since it started.
func (f *Function) restartLocked() {
	old := f.core()
	if err := old.firmware.Close(); err != nil {
		f.log.Error("firmware did not close", "err", err)
	}
	err := f.startLocked(old.generation + 1)
	f.failed = err != nil
	if err != nil {
		// The old firmware stays: it is closed and starts nothing any more.
		// The next reset tries again.
		f.log.Error("firmware did not start after a reset", "err", err)
	}
}

// Restart puts new firmware in the place of the running one, as when that has
// died: whatever it was doing is abandoned, and the host learns of it by
// GENERATION and EVENTS bit 0 (SPEC.md §11.4).
func (f *Function) Restart() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("vdev: restart: %w", net.ErrClosed)
	}
	f.resetFirmwareLocked(false, true)
	if f.failed {
		return errors.New("vdev: restart: the new firmware did not start")
	}
	return nil
}

// stopLook is how often Stop looks whether the firmware has stopped.
const stopLook = time.Millisecond

// Stop is an orderly stop (SPEC.md §11), as if the host had asked for it: it
// returns when STATUS.STOPPED is set, at once if nothing runs, or when ctx ends.
func (f *Function) Stop(ctx context.Context) error {
	fw := f.core().firmware
	if !fw.Running() {
		return nil
	}
	fw.Stop()
	t := time.NewTicker(stopLook)
	defer t.Stop()
	for !fw.Stopped() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("vdev: stop: %w", context.Cause(ctx))
		}
	}
	return nil
}

// Close ends the firmware and the function's own work. It is idempotent;
// accesses after it find a function that is not there.
func (f *Function) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	f.pci.Close()
	f.messages.end()
	f.test.reset()
	f.mu.Unlock()
	f.work.Wait()
	return f.core().firmware.Close()
}
