// SPDX-License-Identifier: Apache-2.0

package access

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
)

// Registers of configuration space.
const (
	Command     = 0x04
	memorySpace = 1 << 1
	capPointer  = 0x34
	maxCaps     = 48 // as many as there is room for
	capMSIX     = 0x11
	msixControl = 2 // in its capability
	msixEnable  = 1 << 15
	msixTable   = 2 // its BAR
)

// Regions are registers reached as bytes of a function's regions. Its methods are
// those of guestdriver.Bus.
type Regions struct{ read, write, post Transfer }

// Transfer reads or writes bytes of a region.
type Transfer func(region int, offset uint64, p []byte) error

// NewRegions returns the registers behind read and write; post is write for BARs,
// where nobody waits for the end of it.
func NewRegions(read, write, post Transfer) *Regions { return &Regions{read, write, post} }

// ReadConfig implements guestdriver.Bus.
func (r *Regions) ReadConfig(offset, size int) (uint32, error) {
	if size != 1 && size != 2 && size != 4 || offset < 0 {
		return 0, unix.EINVAL
	}
	var p [4]byte
	if err := r.read(vfiouser.RegionConfig, uint64(offset), p[:size]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(p[:]), nil
}

// WriteConfig implements guestdriver.Bus.
func (r *Regions) WriteConfig(offset, size int, v uint32) error {
	if size != 1 && size != 2 && size != 4 || offset < 0 {
		return unix.EINVAL
	}
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	return r.write(vfiouser.RegionConfig, uint64(offset), p[:size])
}

// Read32 implements guestdriver.Bus.
func (r *Regions) Read32(bar int, offset uint32) uint32 {
	var p [4]byte
	if err := r.read(bar, uint64(offset), p[:]); err != nil {
		return 0xffffffff
	}
	return binary.LittleEndian.Uint32(p[:])
}

// Write32 implements guestdriver.Bus.
func (r *Regions) Write32(bar int, offset uint32, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	// As on a real bus a write that nobody claims is lost.
	_ = r.post(bar, uint64(offset), p[:])
}

// Registers are what the functions below need of a bus.
type Registers interface {
	ReadConfig(offset, size int) (uint32, error)
	WriteConfig(offset, size int, v uint32) error
	Write32(bar int, offset uint32, v uint32)
}

// EnableMemory switches memory space on, as firmware and kernel do before a driver
// starts.
func EnableMemory(r Registers) error {
	v, err := r.ReadConfig(Command, 2)
	if err != nil {
		return err
	}
	return r.WriteConfig(Command, 2, v|memorySpace)
}

// Capability finds a capability; a list that does not end is an error.
func Capability(r Registers, id uint32) (int, error) {
	p, err := r.ReadConfig(capPointer, 1)
	for i := 0; err == nil && p != 0 && i < maxCaps; i++ {
		var v uint32
		if v, err = r.ReadConfig(int(p), 2); err == nil && v&0xff == id {
			return int(p), nil
		}
		p = v >> 8
	}
	if err == nil {
		err = errors.New("no such capability")
	}
	return 0, fmt.Errorf("capability %#x: %w", id, err)
}

// EnableMSIX sets the enable bit of MSI-X.
func EnableMSIX(r Registers) error {
	p, err := Capability(r, capMSIX)
	if err != nil {
		return err
	}
	v, err := r.ReadConfig(p+msixControl, 2)
	if err != nil {
		return err
	}
	return r.WriteConfig(p+msixControl, 2, v|msixEnable)
}

// Unmask writes the first n entries of the MSI-X table: a message to an address
// each, not masked.
func Unmask(r Registers, n int, message func(v int) (address uint64, data uint32)) {
	for v := range n {
		address, data := message(v)
		for i, w := range [4]uint32{uint32(address), uint32(address >> 32), data, 0} {
			r.Write32(msixTable, uint32(16*v+4*i), w)
		}
	}
}

// Anywhere is the message of a vector on a bus where the vector alone says where
// it goes.
func Anywhere(v int) (address uint64, data uint32) { return 0xfee00000, uint32(v) }

// KeepCommand puts Command back after a reset, as the kernel does around a
// function-level one.
func KeepCommand(r Registers, reset func() error) error {
	v, err := r.ReadConfig(Command, 2)
	if err == nil {
		err = reset()
	}
	if err == nil {
		err = r.WriteConfig(Command, 2, v)
	}
	return err
}
