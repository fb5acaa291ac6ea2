// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"encoding/binary"
	"hash/crc32"
	"sync"

	"golang.org/x/sys/unix"

	"toebox/vdev/abi"
)

// testChunk is how much the test DMA moves at a time. Between chunks it looks
// whether a reset ended it.
const testChunk = 4096

// testDMA is the state of the DMA test registers (SPEC.md §12). [Function.mu]
// guards it.
type testDMA struct {
	status, result uint32
	// run counts commands and resets: a worker whose run is over neither
	// moves nor reports anything more.
	run     uint64
	running bool // a worker is under way, perhaps of a run that is over

	// gate is held through each access; current is run, guarded by gate.
	gate    sync.Mutex
	current uint64
}

// next starts a run or ends one. It waits for an access that is under way:
// access by message must have been abandoned before, the rest is a copy.
func (t *testDMA) next() (run uint64) {
	t.run++
	t.gate.Lock()
	defer t.gate.Unlock()
	t.current = t.run
	return t.run
}

func (t *testDMA) reset() {
	t.next()
	t.status, t.result = abi.TestIdle, 0
}

// testCommand starts a DMA test. The transfer runs in a goroutine: it may have
// to ask the client for memory, and a register write waits for nobody.
func (f *Function) testCommand(command uint32) {
	t := &f.test
	if t.status == abi.TestBusy || (command != abi.TestWrite && command != abi.TestRead) {
		f.badValue("TEST_COMMAND", command)
		return
	}
	length, seed := f.regs[regSlot(abi.RegTestLength)], f.regs[regSlot(abi.RegTestSeed)]
	if length == 0 || length%4 != 0 || length > abi.TestMaxLength {
		t.status, t.result = abi.TestBadLength, 0
		return
	}
	if t.running {
		// A worker that a reset abandoned still waits for its last access.
		t.status, t.result = abi.TestFailed, 0
		return
	}
	addr := uint64(f.regs[regSlot(abi.RegTestAddrHi)])<<32 | uint64(f.regs[regSlot(abi.RegTestAddrLo)])
	t.status, t.result, t.running = abi.TestBusy, 0, true
	run := t.next()
	f.work.Go(func() {
		status, result := f.transfer(run, command == abi.TestWrite, addr, int(length), seed)
		f.mu.Lock()
		defer f.mu.Unlock()
		t.running = false
		if t.run == run {
			t.status, t.result = status, result
		}
	})
}

// transfer moves the pattern and returns what TEST_STATUS and TEST_RESULT say.
func (f *Function) transfer(run uint64, write bool, addr uint64, length int, seed uint32) (status, result uint32) {
	if addr+uint64(length-1) < addr {
		f.count(abi.CounterDMAErrors)
		return abi.TestFailed, 0
	}
	sum := crc32.NewIEEE()
	b := make([]byte, min(length, testChunk))
	for at := 0; at < length; at += len(b) {
		b = b[:min(length-at, testChunk)]
		if write {
			for k := 0; k < len(b); k += 4 {
				binary.LittleEndian.PutUint32(b[k:], seed+uint32((at+k)/4)*abi.TestIncrement)
			}
		}
		if err := f.testAccess(run, write, addr+uint64(at), b); err != nil {
			return abi.TestFailed, 0
		}
		sum.Write(b)
	}
	return abi.TestDone, sum.Sum32()
}

// testAccess moves one chunk unless the run is over.
func (f *Function) testAccess(run uint64, write bool, iova uint64, b []byte) error {
	f.test.gate.Lock()
	defer f.test.gate.Unlock()
	if f.test.current != run {
		return unix.ECANCELED
	}
	if write {
		err := f.Write(iova, b)
		f.core().firmware.Wrote(iova, uint64(len(b)))
		return err
	}
	return f.Read(iova, b)
}
