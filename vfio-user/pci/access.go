// SPDX-License-Identifier: Apache-2.0

package pci

// readConfig copies configuration space to p.
func (f *Function) readConfig(offset int, p []byte) {
	f.mu.Lock()
	copy(p, f.space.value[offset:])
	if f.standingLocked() && offset <= regStatus && regStatus < offset+len(p) {
		p[regStatus-offset] |= statusINTx
	}
	if f.msi != nil && f.msi.Masking {
		r := Field{Offset: f.at.msi + f.msi.pending(), Width: 4}
		r.overlay(f.irq.pendingMSI(f.kind), offset, p)
	}
	var hooked []*Field
	var values []uint64
	for _, h := range f.space.touched(offset, len(p)) {
		if h.Read != nil {
			hooked, values = append(hooked, h), append(values, h.load(f.space.value, 0))
		}
	}
	f.mu.Unlock()
	for i, h := range hooked {
		h.overlay(h.Read(values[i]), offset, p)
	}
}

// writeConfig writes configuration space and acts on what changed.
func (f *Function) writeConfig(offset int, p []byte) {
	f.mu.Lock()
	asleep := f.powerLocked() == pmD3hot
	f.space.write(offset, p)
	switch at := f.at.express + expressControl + 1 - offset; { // the byte that holds the reset bit
	case f.closed:
		f.mu.Unlock()
		return
	case f.flr && at >= 0 && at < len(p) && p[at]&(expressFLR>>8) != 0:
		// The bit clears itself: it is not among the writable ones.
		f.mu.Unlock()
		f.reset(ResetFunction)
		return
	case f.soft && asleep && f.powerLocked() == pmD0:
		f.mu.Unlock()
		f.reset(ResetPower)
		return
	}
	was := f.State()
	f.deriveLocked()
	now := f.State()
	var hooked []*Field
	var values []uint64
	for _, h := range f.space.touched(offset, len(p)) {
		if h.Written != nil {
			hooked, values = append(hooked, h), append(values, h.load(f.space.value, 0))
		}
	}
	f.mu.Unlock()
	for i, h := range hooked {
		h.Written(values[i])
	}
	f.changed(was, now)
}

func (f *Function) changed(was, now State) {
	if was != now && f.cfg.Changed != nil {
		f.cfg.Changed(was, now)
	}
}

// powerLocked is the D-state.
func (f *Function) powerLocked() uint8 {
	if f.at.pm == 0 {
		return pmD0
	}
	return f.space.value[f.at.pm+pmControl] & pmStateMask
}

// reset has the device reset itself, then gives configuration space, MSI-X
// table and interrupts their reset values.
func (f *Function) reset(kind ResetKind) {
	f.mu.Lock()
	closed := f.closed
	f.mu.Unlock()
	if closed {
		return
	}
	if f.cfg.Reset != nil {
		f.cfg.Reset(kind)
	}
	if irqs := f.irq.client.Load(); irqs != nil {
		if r, ok := (*irqs).(interface{ DeviceReset() }); ok {
			r.DeviceReset()
		}
	}
	f.mu.Lock()
	was := f.State()
	f.space.back(kind)
	f.irq.resetTableLocked()
	f.irq.forgetLocked()
	f.deriveLocked()
	now := f.State()
	f.mu.Unlock()
	f.changed(was, now)
}

// deriveLocked has gates and interrupts follow configuration space.
func (f *Function) deriveLocked() {
	power := f.powerLocked()
	kind, multiple, on := ModeINTx, uint32(0), power == pmD0 && !f.closed
	masked := false // all MSI-X vectors
	if f.msi != nil {
		if control := f.space.get(f.at.msi+msiControl, 2); control&msiEnable != 0 {
			kind, multiple = ModeMSI, uint32(control&msiMultiple)>>4
		}
	}
	if f.msix != nil {
		if control := f.space.get(f.at.msix+msixControl, 2); control&msixEnable != 0 {
			kind, masked = ModeMSIX, control&msixMask != 0
		}
	}
	gates := uint32(power)<<gatePower | multiple<<gateMultiple
	if on {
		gates |= uint32(kind) << gateMode
		command := f.space.get(regCommand, 2)
		for _, bit := range []struct{ command, gate uint32 }{
			{commandMemory, gateMemory}, {commandIO, gateIO}, {commandMaster, gateMaster}, {commandINTxDisable, gateINTxDisable},
		} {
			if uint32(command)&bit.command != 0 {
				gates |= bit.gate
			}
		}
	}
	if kind != f.kind {
		f.kind = kind
		f.irq.forgetLocked()
	}
	switch {
	case !f.cfg.IgnoreCommand && gates&gateMaster == 0 || masked:
		f.irq.blockAllLocked()
	case kind == ModeMSI && f.msi.Masking:
		f.irq.blockLocked([]uint64{f.space.get(f.at.msi+f.msi.masks(), 4)})
	case kind == ModeMSIX && f.irq.written:
		f.irq.blockLocked(f.irq.masks)
	default:
		f.irq.blockLocked(nil)
	}
	f.gates.Store(gates)
	f.releaseAllLocked()
	f.lineLocked(false)
}

// answers reports whether a BAR answers.
func (f *Function) answers(bar int) bool {
	gate := uint32(gateMemory)
	if f.bars[bar].Kind == IO {
		gate = gateIO
	}
	g := f.gates.Load()
	return g&gate != 0 || f.cfg.IgnoreCommand && Mode(g>>gateMode&3) != ModeNone
}

func (f *Function) readBAR(bar int, offset uint64, p []byte) {
	if !f.answers(bar) {
		fill(p)
		return
	}
	for len(p) > 0 {
		what, n := f.area(bar, offset, len(p))
		switch read := f.bars[bar].Read; {
		case what == areaTable:
			f.readTable(int(offset)-f.msix.Table, p[:n])
		case what == areaPBA:
			f.readPBA(int(offset)-f.msix.pba(), p[:n])
		case read != nil:
			read(offset, p[:n])
		default:
			clear(p[:n])
		}
		p, offset = p[n:], offset+uint64(n)
	}
}

func (f *Function) writeBAR(bar int, offset uint64, p []byte) {
	if !f.answers(bar) {
		return
	}
	for len(p) > 0 {
		what, n := f.area(bar, offset, len(p))
		switch write := f.bars[bar].Write; {
		case what == areaTable:
			f.writeTable(int(offset)-f.msix.Table, p[:n])
		case what == areaDevice && write != nil:
			write(offset, p[:n])
		}
		p, offset = p[n:], offset+uint64(n)
	}
}

// area is who answers in a part of a BAR.
type area uint8

const (
	areaDevice area = iota
	areaTable
	areaPBA
)

// area returns whose the byte at offset is, and for how many of n bytes that
// holds.
func (f *Function) area(bar int, offset uint64, n int) (area, int) {
	if f.msix == nil || f.msix.BAR != bar {
		return areaDevice, n
	}
	for _, a := range []struct {
		what     area
		at, size int
	}{{areaTable, f.msix.Table, f.msix.tableSize()}, {areaPBA, f.msix.pba(), f.msix.pbaSize()}} {
		first, last := uint64(a.at), uint64(a.at+a.size)
		switch {
		case offset >= first && offset < last:
			return a.what, int(min(uint64(n), last-offset))
		case offset < first:
			n = int(min(uint64(n), first-offset))
		}
	}
	return areaDevice, n
}

func fill(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}
