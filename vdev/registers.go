// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"encoding/binary"

	"toebox/firmware/chip"
	"toebox/vdev/abi"
	"toebox/vfio-user/pci"
)

// access is how software may use a register (SPEC.md §1).
type access uint8

const (
	accessRO access = iota
	accessRW
	accessWO
	accessW1C
)

// register is a row of the register map. A register without hooks is storage:
// reads give what was written through mask. Hooks run with [Function.mu] held;
// q is the queue of a queue's register, else 0.
type register struct {
	offset uint32
	name   string
	access access
	reset  uint32
	mask   uint32 // writable bits
	read   func(f *Function, q int) uint32
	write  func(f *Function, q int, v uint32)
}

const all = 0xffffffff

// registers is the register map of BAR0 below the queues (SPEC.md §3).
func registers() []register {
	return []register{
		{offset: abi.RegID, name: "ID", reset: abi.IDValue},
		{offset: abi.RegVersion, name: "VERSION", reset: abi.VersionValue},
		{offset: abi.RegFeatures, name: "FEATURES", reset: abi.FeatureTCP | abi.FeatureUDP | abi.FeatureIPv6 | abi.FeatureTest},
		{offset: abi.RegLimits, name: "LIMITS", reset: abi.MaxRingLog2<<24 | abi.MinRingLog2<<16 | abi.NumVectors<<8 | abi.MaxQueues},
		{offset: abi.RegControl, name: "CONTROL", access: accessRW, mask: abi.ControlRun | abi.ControlStop | abi.ControlReset,
			write: (*Function).writeControl},
		{offset: abi.RegStatus, name: "STATUS", reset: abi.StatusReady, read: (*Function).readStatus},
		{offset: abi.RegGeneration, name: "GENERATION", read: func(f *Function, _ int) uint32 { return f.core().generation }},
		{offset: abi.RegFirmwareID, name: "FW_ID", read: func(f *Function, _ int) uint32 { return f.core().id }},
		{offset: abi.RegEvents, name: "EVENTS", access: accessW1C, reset: abi.EventFirmware, mask: all,
			read:  func(f *Function, _ int) uint32 { return f.irq.load(&f.irq.events) },
			write: func(f *Function, _ int, v uint32) { f.irq.clearEvents(v) }},
		{offset: abi.RegEventMask, name: "EVENT_MASK", access: accessRW, mask: all,
			read: func(f *Function, _ int) uint32 { return f.irq.load(&f.irq.eventMask) },
			write: func(f *Function, _ int, v uint32) {
				if f.irq.setEventMask(v) {
					f.count(abi.CounterInterrupts)
				}
			}},
		{offset: abi.RegINTxCause, name: "INTX_CAUSE", access: accessW1C, mask: 1,
			read:  func(f *Function, _ int) uint32 { return f.irq.load(&f.irq.cause) },
			write: func(f *Function, _ int, v uint32) { f.irq.clearCauses(v, 0) }},
		{offset: abi.RegINTxQueues, name: "INTX_QUEUES", access: accessW1C, mask: all,
			read:  func(f *Function, _ int) uint32 { return f.irq.load(&f.irq.queues) },
			write: func(f *Function, _ int, v uint32) { f.irq.clearCauses(0, v) }},
		{offset: abi.RegMACLo, name: "MAC_LO",
			read: func(f *Function, _ int) uint32 { return binary.LittleEndian.Uint32(f.identity.MAC[:4]) }},
		{offset: abi.RegMACHi, name: "MAC_HI",
			read: func(f *Function, _ int) uint32 { return uint32(binary.LittleEndian.Uint16(f.identity.MAC[4:])) }},
		{offset: abi.RegUptimeLo, name: "UPTIME_LO",
			read: func(f *Function, _ int) uint32 {
				return f.latch(abi.RegUptimeHi, uint64(f.clock()-f.core().started))
			}},
		{offset: abi.RegUptimeHi, name: "UPTIME_HI"},

		{offset: abi.RegScratch, name: "SCRATCH", access: accessRW, mask: all},
		{offset: abi.RegRaise, name: "RAISE", access: accessWO, mask: all, write: (*Function).writeRaise},
		{offset: abi.RegTestAddrLo, name: "TEST_ADDR_LO", access: accessRW, mask: all},
		{offset: abi.RegTestAddrHi, name: "TEST_ADDR_HI", access: accessRW, mask: all},
		{offset: abi.RegTestLength, name: "TEST_LENGTH", access: accessRW, mask: all},
		{offset: abi.RegTestSeed, name: "TEST_SEED", access: accessRW, mask: all},
		{offset: abi.RegTestCommand, name: "TEST_COMMAND", access: accessWO, mask: all,
			write: func(f *Function, _ int, v uint32) { f.testCommand(v) }},
		{offset: abi.RegTestStatus, name: "TEST_STATUS", read: func(f *Function, _ int) uint32 { return f.test.status }},
		{offset: abi.RegTestResult, name: "TEST_RESULT", read: func(f *Function, _ int) uint32 { return f.test.result }},

		{offset: abi.RegClockMode, name: "CLOCK_MODE", access: accessRW, mask: all, write: (*Function).writeClockMode},
		{offset: abi.RegClockStepLo, name: "CLOCK_STEP_LO", access: accessRW, mask: all},
		{offset: abi.RegClockStepHi, name: "CLOCK_STEP_HI", access: accessRW, mask: all, write: (*Function).writeClockStep},
		{offset: abi.RegClockNowLo, name: "CLOCK_NOW_LO",
			read: func(f *Function, _ int) uint32 { return f.latch(abi.RegClockNowHi, f.core().firmware.PolicyNow()) }},
		{offset: abi.RegClockNowHi, name: "CLOCK_NOW_HI"},
		{offset: abi.RegChecker, name: "CHECKER", access: accessRW, mask: 1,
			write: func(f *Function, _ int, v uint32) {
				f.regs[regSlot(abi.RegChecker)] = v
				f.core().firmware.SetChecker(v == 1)
			}},
		{offset: abi.RegCheckerCount, name: "CHECKER_COUNT",
			read: func(f *Function, _ int) uint32 {
				return uint32(f.load(abi.CounterCheckerViolations) - f.checkerBase)
			}},

		{offset: abi.RegNVMAddr, name: "NVM_ADDR", access: accessRW, mask: all},
		{offset: abi.RegNVMData, name: "NVM_DATA", access: accessRW, mask: all},
		{offset: abi.RegNVMCommand, name: "NVM_COMMAND", access: accessWO, mask: all,
			write: func(f *Function, _ int, v uint32) { f.nvmCommand(v) }},
		{offset: abi.RegNVMStatus, name: "NVM_STATUS", read: func(f *Function, _ int) uint32 { return f.nvm.status | f.nvm.corrupt }},

		{offset: abi.RegStatSelect, name: "STAT_SELECT", access: accessRW, mask: all, write: (*Function).writeStatSelect},
		{offset: abi.RegStatLo, name: "STAT_LO"},
		{offset: abi.RegStatHi, name: "STAT_HI"},
	}
}

// queueRegisters is the block of one queue (SPEC.md §3.2). The reset value of
// Q_VECTOR is that of queue 0; others add their number.
func queueRegisters() []register {
	return []register{
		{offset: abi.QRegCommand, name: "Q_COMMAND", access: accessWO, mask: all, write: (*Function).writeQueueCommand},
		{offset: abi.QRegState, name: "Q_STATE",
			read: func(f *Function, q int) uint32 {
				s := f.core().firmware.QueueStatus(q)
				return uint32(s.State)&0xf | uint32(s.Last)<<16
			}},
		{offset: abi.QRegInLo, name: "Q_IN_LO", access: accessRW, mask: all},
		{offset: abi.QRegInHi, name: "Q_IN_HI", access: accessRW, mask: all},
		{offset: abi.QRegOutLo, name: "Q_OUT_LO", access: accessRW, mask: all},
		{offset: abi.QRegOutHi, name: "Q_OUT_HI", access: accessRW, mask: all},
		{offset: abi.QRegEventLo, name: "Q_EVENT_LO", access: accessRW, mask: all},
		{offset: abi.QRegEventHi, name: "Q_EVENT_HI", access: accessRW, mask: all},
		{offset: abi.QRegSizes, name: "Q_SIZES", access: accessRW, mask: 0xffff},
		{offset: abi.QRegVector, name: "Q_VECTOR", access: accessRW, reset: 1, mask: all},
		{offset: abi.QRegInIndex, name: "Q_IN_INDEX",
			read: func(f *Function, q int) uint32 { return uint32(f.core().firmware.QueueStatus(q).InIndex) }},
		{offset: abi.QRegOutIndex, name: "Q_OUT_INDEX",
			read: func(f *Function, q int) uint32 { return uint32(f.core().firmware.QueueStatus(q).OutIndex) }},
		{offset: abi.QRegHeld, name: "Q_HELD", read: func(f *Function, q int) uint32 { return f.core().firmware.QueueStatus(q).Held }},
		{offset: abi.QRegError, name: "Q_ERROR", read: func(f *Function, q int) uint32 { return f.core().firmware.QueueStatus(q).Error }},
	}
}

const (
	globalSlots = 0x400 / 4 // registers below 0x400 have storage
	queueSlots  = abi.RegQueueStride / 4
	queuesEnd   = abi.RegQueueBase + abi.MaxQueues*abi.RegQueueStride
	doorbellEnd = abi.RegDoorbells + abi.MaxQueues*abi.DoorbellStride
	vectorSlot  = abi.QRegVector / 4
)

// regSlot is the place of a register's storage.
func regSlot(offset uint32) int { return int(offset / 4) }

// registerFile finds registers by offset. It does not change after it is made.
type registerFile struct {
	global [globalSlots]*register
	queue  [queueSlots]*register
}

func newRegisterFile() *registerFile {
	rf := &registerFile{}
	for _, r := range registers() {
		rf.global[regSlot(r.offset)] = &r
	}
	for _, r := range queueRegisters() {
		rf.queue[regSlot(r.offset)] = &r
	}
	return rf
}

// find returns the register at offset with its storage and queue, or nil where
// the map has none.
func (f *Function) find(offset uint64) (r *register, v *uint32, q int) {
	switch {
	case offset < globalSlots*4:
		slot := offset / 4
		return f.file.global[slot], &f.regs[slot], 0
	case offset >= abi.RegQueueBase && offset < queuesEnd:
		q := int(offset-abi.RegQueueBase) / abi.RegQueueStride
		slot := (offset - abi.RegQueueBase) % abi.RegQueueStride / 4
		return f.file.queue[slot], &f.queues[q][slot], q
	}
	return nil, nil, 0
}

// readRegister reads BAR0. Whatever is not one aligned 32-bit access reads all
// ones (SPEC.md §2.1).
func (f *Function) readRegister(offset uint64, p []byte) {
	f.count(abi.CounterMMIOReads)
	if len(p) != 4 || offset%4 != 0 {
		f.badAccess("read", offset, len(p))
		fill(p)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r, v, q := f.find(offset)
	value := uint32(0)
	switch {
	case r == nil || r.access == accessWO:
	case r.read != nil:
		value = r.read(f, q)
	default:
		value = *v
	}
	binary.LittleEndian.PutUint32(p, value)
}

// writeRegister writes BAR0. Doorbells go to the firmware at once.
func (f *Function) writeRegister(offset uint64, p []byte) {
	f.count(abi.CounterMMIOWrites)
	if len(p) != 4 || offset%4 != 0 {
		f.badAccess("write", offset, len(p))
		return
	}
	value := binary.LittleEndian.Uint32(p)
	if offset >= abi.RegDoorbells && offset < doorbellEnd {
		f.doorbell(uint32(offset-abi.RegDoorbells), abi.Index(value&abi.IndexMask))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r, v, q := f.find(offset)
	switch {
	case r == nil || r.access == accessRO:
	case r.write != nil:
		r.write(f, q, value&r.mask)
	default:
		*v = value & r.mask
	}
}

// doorbell passes a doorbell on without lock or allocation.
func (f *Function) doorbell(at uint32, index abi.Index) {
	fw := f.core().firmware
	if q := int(at / abi.DoorbellStride); at%abi.DoorbellStride == 0 {
		fw.Doorbell(q, index)
	} else {
		fw.DoorbellOut(q, index)
	}
}

func fill(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}

// resetRegisters gives storage its reset values.
func (f *Function) resetRegisters() {
	for slot, r := range f.file.global {
		if r != nil {
			f.regs[slot] = r.reset
		}
	}
	for q := range f.queues {
		for slot, r := range f.file.queue {
			if r != nil {
				f.queues[q][slot] = r.reset
			}
		}
		f.queues[q][vectorSlot] += uint32(q)
	}
}

// latch splits v: its high half stands in the register at hi from now on.
func (f *Function) latch(hi uint32, v uint64) uint32 {
	f.regs[regSlot(hi)] = uint32(v >> 32)
	return uint32(v)
}

// writeControl starts and stops the firmware or resets the adapter. RUN counts
// while STOP is 0.
func (f *Function) writeControl(_ int, v uint32) {
	if v&abi.ControlReset != 0 {
		f.resetLocked(false)
		return
	}
	reg := &f.regs[regSlot(abi.RegControl)]
	running := func(v uint32) bool { return v&(abi.ControlRun|abi.ControlStop) == abi.ControlRun }
	before := *reg
	*reg = v
	switch fw := f.core().firmware; {
	case !running(before) && running(v):
		fw.Run()
	case running(before) && !running(v), ^before&v&abi.ControlStop != 0:
		fw.Stop()
	}
}

func (f *Function) readStatus(int) uint32 {
	c := f.core()
	v := uint32(abi.StatusReady)
	for _, bit := range []struct {
		on   bool
		mask uint32
	}{
		{c.firmware.Running(), abi.StatusRunning},
		{c.firmware.Stopped(), abi.StatusStopped},
		{f.failed, abi.StatusFailed},
		{f.link.Load(), abi.StatusLink},
		{f.pci.State().Mode == pci.ModeMSIX, abi.StatusMSIX},
		{f.pci.Master(), abi.StatusDMA},
	} {
		if bit.on {
			v |= bit.mask
		}
	}
	return v
}

// writeRaise signals a vector without a cause (SPEC.md §12).
func (f *Function) writeRaise(_ int, v uint32) {
	if v >= abi.NumVectors {
		f.badValue("RAISE", v)
		return
	}
	if v == 0 {
		f.irq.note(abi.EventRaise)
	}
	f.count(abi.CounterInterrupts)
	f.irq.signal(int(v))
}

func (f *Function) writeClockMode(_ int, v uint32) {
	if v > 1 {
		f.badValue("CLOCK_MODE", v)
		return
	}
	f.regs[regSlot(abi.RegClockMode)] = v
	f.core().firmware.SetPolicyClock(v == 1)
}

func (f *Function) writeClockStep(_ int, v uint32) {
	f.regs[regSlot(abi.RegClockStepHi)] = v
	if f.regs[regSlot(abi.RegClockMode)] == 1 {
		f.core().firmware.StepPolicyClock(uint64(v)<<32 | uint64(f.regs[regSlot(abi.RegClockStepLo)]))
	}
}

// writeStatSelect latches a counter in STAT_LO and STAT_HI.
func (f *Function) writeStatSelect(_ int, v uint32) {
	f.regs[regSlot(abi.RegStatSelect)] = v
	var n uint64
	if v < abi.NumCounters {
		n = f.load(abi.Counter(v))
	} else {
		f.badValue("STAT_SELECT", v)
	}
	f.regs[regSlot(abi.RegStatLo)] = f.latch(abi.RegStatHi, n)
}

// writeQueueCommand hands a command to the firmware with the queue's registers
// as they stand.
func (f *Function) writeQueueCommand(q int, v uint32) {
	r := &f.queues[q]
	pair := func(lo int) uint64 { return uint64(r[lo/4+1])<<32 | uint64(r[lo/4]) }
	f.core().firmware.Command(q, abi.QueueCommand(v), chip.QueueConfig{
		In: pair(abi.QRegInLo), Out: pair(abi.QRegOutLo), Event: pair(abi.QRegEventLo),
		InLog2: uint8(r[abi.QRegSizes/4]), OutLog2: uint8(r[abi.QRegSizes/4] >> 8),
		Vector: int(r[vectorSlot]),
	})
}
