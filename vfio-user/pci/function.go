// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	vfiouser "toebox/vfio-user"
)

// Config declares a function.
type Config struct {
	Vendor, Device             uint16
	Revision                   uint8
	Class                      uint32 // base class, sub-class, interface: 24 bits
	SubsystemVendor, Subsystem uint16
	Pin                        uint8 // interrupt pin: 1 is INTA; 0: none

	BARs [6]BAR
	ROM  []byte // expansion ROM; is kept

	// Capabilities in the order in which software finds them. With [Express]
	// configuration space has 4096 bytes, else 256.
	Capabilities []Capability
	// Fields are the device's own, outside header and capabilities.
	Fields []Field
	// CommandMask is what software may write of the Command register.
	// 0: memory and I/O space as there are BARs, bus master, parity, SERR#,
	// INTx disable with a pin.
	CommandMask uint16
	// IgnoreCommand has BARs answer and messages leave whatever Command says,
	// for clients that do not set it. A VMM sees to both itself.
	IgnoreCommand bool

	// Changed tells of a change of state by a write or a reset.
	Changed func(was, now State)
	// Reset stops what the device does and gives its registers their reset
	// values, before configuration space gets its own. Bus mastering may still
	// be on; interrupts raised here are lost.
	Reset func(ResetKind)
	// Disconnected tells that the client has gone. If nil, that is a bus reset.
	Disconnected func()
}

// ResetKind is a reason for a reset.
type ResetKind uint8

// Kinds of resets. All give configuration space and MSI-X table their reset
// values; bits that are sticky stay.
const (
	ResetBus      ResetKind = iota // VFIO_USER_DEVICE_RESET, or no client any more
	ResetFunction                  // function-level reset: also keeps [Field.FLRKeeps]
	ResetPower                     // D3hot to D0 without No_Soft_Reset
)

// Mode is how interrupts leave the function.
type Mode uint8

// Modes. Where software enables both MSI and MSI-X, which it must not, MSI-X
// it is.
const (
	ModeNone Mode = iota // not in D0, or closed
	ModeINTx
	ModeMSI
	ModeMSIX
)

// State is what configuration space lets the function do. But for Power it is
// all off outside D0.
type State struct {
	Power              uint8 // 0 is D0, 3 is D3hot
	Memory, IO, Master bool
	INTxDisable        bool
	Mode               Mode
}

// Bits of the packed state.
const (
	gateMemory = 1 << iota
	gateIO
	gateMaster
	gateINTxDisable
	gatePower    = 4 // shift, 2 bits
	gateMode     = 6 // shift, 2 bits
	gateMultiple = 8 // shift, 3 bits: MSI vectors allowed, as a power of 2
)

func unpack(g uint32) State {
	return State{
		Power: uint8(g >> gatePower & 3), Mode: Mode(g >> gateMode & 3),
		Memory: g&gateMemory != 0, IO: g&gateIO != 0, Master: g&gateMaster != 0, INTxDisable: g&gateINTxDisable != 0,
	}
}

// Function is a PCI function. It implements [vfiouser.Device].
type Function struct {
	cfg  Config
	bars [numBARs]BAR
	rom  []byte
	msi  *MSI                                 // nil: none
	msix *MSIX                                // nil: none
	inta bool                                 // there is an interrupt pin
	flr  bool                                 // there is a function-level reset
	soft bool                                 // leaving D3hot is a reset
	at   struct{ pm, express, msi, msix int } // capabilities; 0: none

	gates atomic.Uint32
	irq   interrupts

	mu      sync.Mutex
	space   *space
	closed  bool
	kind    Mode // of interrupts that is enabled, whatever the power state
	layouts []*layout
}

var _ vfiouser.Device = (*Function)(nil)

// New makes a function in its power-on state. cfg is checked: nothing in
// configuration space or in a BAR may overlap.
func New(cfg Config) (*Function, error) {
	f := &Function{cfg: cfg, bars: cfg.BARs, rom: cfg.ROM, inta: cfg.Pin > 0}
	if err := f.build(); err != nil {
		return nil, fmt.Errorf("pci: %w", err)
	}
	return f, nil
}

func (f *Function) build() error {
	ls, err := layouts(f.cfg.Capabilities)
	if err != nil {
		return err
	}
	size := sizeConventional
	for _, l := range ls {
		switch c := l.acts.(type) {
		case Express:
			size, f.flr = sizeExpress, c.FLR
		case PM:
			f.soft = !c.NoSoftReset
		case MSI:
			f.msi = &c
		case MSIX:
			f.msix = &c
			if err := f.placeMSIX(); err != nil {
				return fmt.Errorf("%v: %w", l, err)
			}
		}
	}
	if size == sizeConventional && slices.ContainsFunc(ls, func(l *layout) bool { return l.extended }) {
		return errors.New("extended capabilities without the PCI Express capability")
	}
	f.cfg.BARs = f.bars
	header, err := f.cfg.header()
	if err != nil {
		return err
	}
	s := newSpace(size)
	s.use(0, headerSize)
	for _, h := range header {
		if err := s.add(h, 0, headerSize); err != nil {
			return err
		}
	}
	for _, own := range f.cfg.Fields {
		if !s.free(own.Offset, own.Width) {
			return fmt.Errorf("field at %#x: the place is taken", own.Offset)
		}
		if err := s.add(own, 0, size); err != nil {
			return err
		}
		s.use(own.Offset, own.Width)
	}
	if err := s.place(ls); err != nil {
		return err
	}
	s.arrange()
	f.space, f.layouts = s, ls
	for id, at := range map[uint16]*int{idPM: &f.at.pm, idExpress: &f.at.express, idMSI: &f.at.msi, idMSIX: &f.at.msix} {
		*at, _ = f.Find(id, false)
	}
	f.irq.init(f.msi, f.msix)
	f.deriveLocked()
	return nil
}

// placeMSIX sees that table and pending bits are in a BAR.
func (f *Function) placeMSIX() error {
	b := &f.bars[f.msix.BAR]
	if b.Size == 0 {
		b.Size = uint64(max(4096, 1<<bits.Len(uint(f.msix.end()-1))))
	}
	if b.Kind == IO || uint64(f.msix.end()) > b.Size {
		return fmt.Errorf("table and pending bits end at %#x, BAR%d at %#x, or it is not memory", f.msix.end(), f.msix.BAR, b.Size)
	}
	return nil
}

// Connect sets who is told of interrupts, before the first access. Until then
// they are refused. If irqs has a method DeviceReset(), as [vfiouser.Server] has,
// it is called after each reset.
func (f *Function) Connect(irqs IRQs) { f.irq.client.Store(&irqs) }

// Find returns where the first capability with an id is, if there is one.
func (f *Function) Find(id uint16, extended bool) (offset int, ok bool) {
	for _, l := range f.layouts {
		if l.id == id && l.extended == extended {
			return l.at, true
		}
	}
	return 0, false
}

// State returns what configuration space says now. It takes no lock.
func (f *Function) State() State { return unpack(f.gates.Load()) }

// Memory reports whether BARs in memory space answer. It takes no lock.
func (f *Function) Memory() bool { return f.gates.Load()&gateMemory != 0 }

// Master reports whether DMA may run. It takes no lock.
func (f *Function) Master() bool { return f.gates.Load()&gateMaster != 0 }

// Load returns what is stored in configuration space: width bytes, 1 to 8. Like
// Store and Preset it panics if those are not in it.
func (f *Function) Load(offset, width int) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.space.get(offset, width)
}

// Store changes what is stored, whatever the masks say: a status bit, an error
// log. Command and the control registers of capabilities are software's.
func (f *Function) Store(offset, width int, v uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.space.set(offset, width, v)
}

// Preset changes the reset value and what is stored: a serial number that is
// known late.
func (f *Function) Preset(offset, width int, v uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.space.set(offset, width, v)
	copy(f.space.reset[offset:offset+width], f.space.value[offset:])
}

// ReadRegion implements [vfiouser.Device]. An access that leaves its region is
// EINVAL, whoever makes it.
func (f *Function) ReadRegion(region int, offset uint64, p []byte) error {
	if !f.inside(region, offset, len(p)) {
		return syscall.EINVAL
	}
	switch region {
	case vfiouser.RegionConfig:
		f.readConfig(int(offset), p)
	case vfiouser.RegionROM:
		// The contents are there whatever the enable bit says: a VMM copies
		// them.
		fill(p)
		if offset < uint64(len(f.rom)) {
			copy(p, f.rom[offset:])
		}
	default:
		f.readBAR(region, offset, p)
	}
	return nil
}

// WriteRegion implements [vfiouser.Device].
func (f *Function) WriteRegion(region int, offset uint64, p []byte) error {
	if !f.inside(region, offset, len(p)) {
		return syscall.EINVAL
	}
	switch region {
	case vfiouser.RegionConfig:
		f.writeConfig(int(offset), p)
	case vfiouser.RegionROM:
		return syscall.EINVAL
	default:
		f.writeBAR(region, offset, p)
	}
	return nil
}

// inside is the one place that bounds an access.
func (f *Function) inside(region int, offset uint64, n int) bool {
	size := f.RegionSize(region)
	return size > 0 && offset <= size && uint64(n) <= size-offset
}

// Reset implements [vfiouser.Device]: a bus reset.
func (f *Function) Reset() error {
	f.reset(ResetBus)
	return nil
}

// Disconnected implements [vfiouser.Device].
func (f *Function) Disconnected() {
	if f.cfg.Disconnected != nil {
		f.cfg.Disconnected()
		return
	}
	f.reset(ResetBus)
}

// Close takes the function off the bus: BARs read all ones, no interrupt leaves
// any more, resets do nothing. It waits for nobody.
func (f *Function) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.deriveLocked()
}
