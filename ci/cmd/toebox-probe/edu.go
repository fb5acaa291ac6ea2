// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/vfio"
)

// Registers of the teaching device in BAR0, and bits in them.
const (
	eduID        = 0x00
	eduLiveness  = 0x04
	eduFactorial = 0x08
	eduStatus    = 0x20 // bit 0: busy; bit 7: interrupt after a factorial
	eduReasons   = 0x24 // of the interrupt; bit 0: factorial; bit 8: transfer
	eduAck       = 0x64
	eduSource    = 0x80
	eduDest      = 0x88
	eduCount     = 0x90
	eduCommand   = 0x98 // bit 0: start, and running; bit 1: to RAM; bit 2: interrupt

	eduBuffer = 0x40000 // the device's own memory, 4096 bytes
	eduMask   = 1<<28 - 1

	byFactorial = 0x001
	byTransfer  = 0x100
)

// edu is the teaching device under this program.
type edu struct {
	bus  *vfio.Bus
	ram  guestdriver.DMA // two pages: what goes out, and what comes back
	irqs chan error      // one value per interrupt; nil unless waiting failed
}

// withEdu runs f on the device.
func withEdu(f func(*edu) error) (err error) {
	bus, err := open("0x1234", "0x11e8", eduMask)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bus.Close()) }()
	e := &edu{bus: bus, irqs: make(chan error)}
	command, err := bus.ReadConfig(0x04, 2)
	if err != nil {
		return err
	}
	if err := bus.WriteConfig(0x04, 2, command|6); err != nil { // memory space, bus master
		return err
	}
	if e.ram, err = bus.AllocDMA(2 * 4096); err != nil {
		return err
	}
	e.set(eduAck, ^uint32(0)) // whoever was before may have left something
	if err := bus.EnableVectors(1); err != nil {
		return err
	}
	go func() { // ends with the program
		for {
			e.irqs <- bus.Wait(0)
		}
	}()
	return f(e)
}

func (e *edu) get(reg uint32) uint32    { return e.bus.Read32(0, reg) }
func (e *edu) set(reg uint32, v uint32) { e.bus.Write32(0, reg, v) }

// interrupt waits for an interrupt for this reason and acknowledges it. One for no
// reason, as a machine may see when vectors are enabled, does not count.
func (e *edu) interrupt(reason uint32) error {
	t := time.NewTimer(patience)
	defer t.Stop()
	for {
		select {
		case err := <-e.irqs:
			if err != nil {
				return err
			}
		case <-t.C:
			return fmt.Errorf("no interrupt for reason %#x; the reasons are %#x", reason, e.get(eduReasons))
		}
		got := e.get(eduReasons)
		if got == 0 {
			continue
		}
		e.set(eduAck, got)
		if got != reason {
			return fmt.Errorf("interrupt for reasons %#x, want %#x", got, reason)
		}
		if now := e.get(eduReasons); now != 0 {
			return fmt.Errorf("reasons %#x after the acknowledgement", now)
		}
		return nil
	}
}

// factorial lets the device compute and interrupt.
func (e *edu) factorial(n, want uint32) error {
	e.set(eduStatus, 0x80)
	e.set(eduFactorial, n)
	if err := e.interrupt(byFactorial); err != nil {
		return fmt.Errorf("factorial of %d: %w", n, err)
	}
	if got, status := e.get(eduFactorial), e.get(eduStatus); got != want || status != 0x80 {
		return fmt.Errorf("factorial of %d is %d, status %#x; want %d, 0x80", n, got, status, want)
	}
	return nil
}

// transfer moves n bytes one way. The registers are 64 bits wide, and a store of 32
// clears the rest.
func (e *edu) transfer(source, dest uint64, n, direction uint32) error {
	e.set(eduSource, uint32(source))
	e.set(eduDest, uint32(dest))
	e.set(eduCount, n)
	e.set(eduCommand, 1|direction|4)
	if err := e.interrupt(byTransfer); err != nil {
		return fmt.Errorf("transfer of %d bytes from %#x to %#x: %w", n, source, dest, err)
	}
	if c := e.get(eduCommand); c&1 != 0 {
		return fmt.Errorf("transfer of %d bytes from %#x to %#x: interrupt before its end", n, source, dest)
	}
	return nil
}

// roundTrip sends n bytes to the device's buffer and fetches them to another page.
func (e *edu) roundTrip(round byte, n int) error {
	out, back := e.ram.Bytes[:4096], e.ram.Bytes[4096:8192]
	for i := range out {
		out[i], back[i] = byte(i)+round, 0xa5
	}
	if err := e.transfer(e.ram.IOVA, eduBuffer+4096-uint64(n), uint32(n), 0); err != nil {
		return err
	}
	if err := e.transfer(eduBuffer+4096-uint64(n), e.ram.IOVA+4096, uint32(n), 2); err != nil {
		return err
	}
	if !bytes.Equal(back[:n], out[:n]) {
		return fmt.Errorf("%d bytes sent and fetched: % .16x, want % .16x", n, back, out)
	}
	if n < len(back) && back[n] != 0xa5 {
		return fmt.Errorf("%d bytes fetched, and one more", n)
	}
	return nil
}

// check goes through everything the device does.
func check(e *edu) error {
	if id, err := e.bus.ReadConfig(0, 4); err != nil || id != 0x11e81234 {
		return fmt.Errorf("ids %#x, %w", id, err)
	}
	if id := e.get(eduID); id != 0x010000ed {
		return fmt.Errorf("identification %#x", id)
	}
	e.set(eduLiveness, 0x12345678)
	if v := e.get(eduLiveness); v != 0xedcba987 {
		return fmt.Errorf("liveness %#x, want 0xedcba987", v)
	}
	for n, want := range []uint32{1, 1, 2, 6, 24, 120, 720, 5040, 40320, 362880, 3628800, 39916800, 479001600} {
		if err := e.factorial(uint32(n), want); err != nil {
			return err
		}
	}
	for round, n := range []int{4096, 1, 8, 511, 4095} {
		if err := e.roundTrip(byte(round), n); err != nil {
			return err
		}
	}
	fmt.Printf("edu: 13 factorials, 10 transfers at %#x\n", e.ram.IOVA)
	return nil
}

// load moves data until told to end.
func load(ctx context.Context, e *edu) error {
	for round := byte(0); ctx.Err() == nil; round++ {
		if err := e.roundTrip(round, 4096); err != nil {
			return err
		}
	}
	return nil
}
