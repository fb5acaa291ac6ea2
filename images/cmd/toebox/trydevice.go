// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"time"

	"toebox/images/qtest"
	"toebox/images/rig"
	"toebox/images/toolchain"
	"toebox/images/vm"
)

// SPEC.md §2, §3, §12 and PCI 3.0 §6.8.2, as literals: what is tried is the device
// as documented, not as this tree's constants have it.
const (
	pciID         = 0x74221234
	idValue       = 0x424f4554 // "TOEB"
	regScratch    = 0x080
	regRaise      = 0x084
	regTestAddrLo = 0x090
	regTestAddrHi = 0x094
	regTestLength = 0x098
	regTestSeed   = 0x09c
	regTestCmd    = 0x0a0
	regTestStatus = 0x0a4
	regTestResult = 0x0a8
	patternStep   = 0x9e3779b9

	barRegisters = 0xe0000000 // where the trial puts them
	barMSIX      = 0xe0100000
	msixCap      = 0x11

	dmaAt       = 0x100000 // in the machine's RAM
	dmaLength   = 4096
	dmaSeed     = 0x1badb002
	interruptAt = 0x200000
	cookie      = 0x70eb0005
	vector      = 5

	trialPatience = 10 * time.Second
	pollPeriod    = 200 * time.Microsecond
)

// tryDevice attaches the device to a machine without CPUs, and has it write memory
// and signal an interrupt.
func tryDevice(ctx context.Context, o rig.Options, q *toolchain.QEMU) (string, error) {
	o.Net, o.Port, o.Report = "nat", 0, nil
	d, err := rig.Serve(ctx, o, "")
	if err != nil {
		return "", err
	}
	defer d.Close()
	dir, err := os.MkdirTemp(o.Runtime, "toebox-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // only wasted space if it stays
	ctx, cancel := context.WithTimeout(ctx, trialPatience)
	defer cancel()
	m, err := qtest.Start(ctx, qtest.Config{
		Command: q.Command, Dir: dir, Memory: 16 << 20, Args: []string{"-device", vm.DeviceArg(d.Socket)},
	})
	if err != nil {
		return "", fmt.Errorf("%w (device log: %s)", err, d.Dir)
	}
	defer m.Close() //nolint:errcheck // the trial is over
	t := trial{m: m, f: qtest.NewBDF(0, 5, 0)}
	t.attach()
	t.dma(ctx)
	t.interrupt(ctx)
	if t.err != nil {
		return "", fmt.Errorf("%w (device log: %s)", t.err, d.Dir)
	}
	return "registers, DMA and an MSI-X interrupt work through QEMU", nil
}

// A trial goes on until its first error.
type trial struct {
	m   *qtest.Machine
	f   qtest.BDF
	err error
}

func (t *trial) config(offset uint8, size int) uint32 {
	if t.err != nil {
		return 0
	}
	v, err := t.m.ReadConfig(t.f, offset, size)
	t.err = err
	return v
}

func (t *trial) setConfig(offset uint8, size int, v uint32) {
	if t.err == nil {
		t.err = t.m.WriteConfig(t.f, offset, size, v)
	}
}

func (t *trial) read(addr uint64) uint32 {
	if t.err != nil {
		return 0
	}
	v, err := t.m.Read32(addr)
	t.err = err
	return v
}

func (t *trial) write(addr uint64, v uint32) {
	if t.err == nil {
		t.err = t.m.Write32(addr, v)
	}
}

func (t *trial) want(what string, got, want uint32) {
	if t.err == nil && got != want {
		t.err = fmt.Errorf("%s is %#x, want %#x", what, got, want)
	}
}

// poll waits until read gives want.
func (t *trial) poll(ctx context.Context, what string, addr uint64, want uint32) {
	for t.err == nil {
		v := t.read(addr)
		if v == want {
			return
		}
		if ctx.Err() != nil {
			t.err = fmt.Errorf("%s is %#x, want %#x: %w", what, v, want, ctx.Err())
			return
		}
		time.Sleep(pollPeriod)
	}
}

// attach places the BARs, switches the function on, and tries its registers.
func (t *trial) attach() {
	t.want("PCI id", t.config(0, 4), pciID)
	for bar, base := range map[uint8]uint32{0x10: barRegisters, 0x18: barMSIX} {
		t.setConfig(bar, 4, base)
		t.setConfig(bar+4, 4, 0)
	}
	t.setConfig(0x04, 2, 6) // memory space and bus master
	t.want("register ID", t.read(barRegisters), idValue)
	t.write(barRegisters+regScratch, 0xa5a55a5a)
	t.want("register SCRATCH", t.read(barRegisters+regScratch), 0xa5a55a5a)
}

// dma has the device write a pattern and looks at it from the other side.
func (t *trial) dma(ctx context.Context) {
	for reg, v := range map[uint64]uint32{
		regTestAddrLo: dmaAt, regTestAddrHi: 0, regTestLength: dmaLength, regTestSeed: dmaSeed,
	} {
		t.write(barRegisters+reg, v)
	}
	t.write(barRegisters+regTestCmd, 1)
	t.poll(ctx, "register TEST_STATUS", barRegisters+regTestStatus, 2)
	if t.err != nil {
		return
	}
	got := make([]byte, dmaLength)
	if _, t.err = t.m.RAM.ReadAt(got, dmaAt); t.err != nil {
		return
	}
	for k := uint32(0); k < dmaLength/4; k++ {
		t.want(fmt.Sprintf("word %d of the pattern", k), binary.LittleEndian.Uint32(got[4*k:]), uint32(dmaSeed)+k*patternStep)
	}
	t.want("register TEST_RESULT", t.read(barRegisters+regTestResult), crc32.ChecksumIEEE(got))
}

// interrupt points one vector at memory and has the device raise it.
func (t *trial) interrupt(ctx context.Context) {
	pos := uint8(t.config(0x34, 1))
	for range 48 { // as many as fit
		if t.err != nil || pos == 0 || t.config(pos, 1) == msixCap {
			break
		}
		pos = uint8(t.config(pos+1, 1)) &^ 3
	}
	if t.err == nil && pos == 0 {
		t.err = fmt.Errorf("no MSI-X capability")
	}
	entry := uint64(barMSIX) + 16*vector
	t.write(entry, interruptAt)
	t.write(entry+4, 0)
	t.write(entry+8, cookie)
	t.write(entry+12, 0) // unmasked
	t.setConfig(pos+2, 2, 1<<15)
	t.write(barRegisters+regRaise, vector)
	t.poll(ctx, "the interrupt's cookie", interruptAt, cookie)
}
