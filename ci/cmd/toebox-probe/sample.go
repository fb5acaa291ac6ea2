// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
)

// sample goes through what a program without DMA finds of the interoperability
// sample: its header, the clock of BAR0, and the memory in BAR1, which may be mapped.
func sample() (err error) {
	const memory = 0x3000 // bytes of BAR1; beyond them are zeros
	bus, err := open("0xdead", "0xbeef", ^uint64(0))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bus.Close()) }()
	for _, w := range []struct {
		at   int
		want uint32
	}{{0x00, 0xbeefdead}, {0x2c, 0xbabecafe}} {
		if v, err := bus.ReadConfig(w.at, 4); err != nil || v != w.want {
			return fmt.Errorf("configuration space has %#x at %#x, %w; want %#x", v, w.at, err, w.want)
		}
	}
	command, err := bus.ReadConfig(0x04, 2)
	if err != nil {
		return err
	}
	if err := bus.WriteConfig(0x04, 2, command|2); err != nil { // memory space
		return err
	}
	if now := bus.Read32(0, 0); now == 0 || now == ^uint32(0) {
		return fmt.Errorf("the clock stands at %#x", now)
	}
	pattern := func(at uint32) uint32 { return at*0x9e3779b9 + 1 }
	for at := uint32(0); at < memory+64; at += 4 {
		bus.Write32(1, at, pattern(at))
	}
	for at := uint32(0); at < memory+64; at += 4 {
		want := pattern(at)
		if at >= memory {
			want = 0
		}
		if v := bus.Read32(1, at); v != want {
			return fmt.Errorf("BAR1 has %#x at %#x, want %#x", v, at, want)
		}
	}
	fmt.Printf("sample: %d bytes of BAR1 hold what was written\n", memory)
	return nil
}
