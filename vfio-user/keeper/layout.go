// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"fmt"
	"slices"
	"syscall"

	vfiouser "toebox/vfio-user"
)

const (
	maxRegions   = 256
	maxIRQs      = 64
	regionConfig = 7
)

// regionLayout is a region as the server describes it.
type regionLayout struct {
	errno syscall.Errno // the description was refused
	flags uint32        // readable, writable
	size  uint64
}

// irqLayout is an IRQ index as the server describes it.
type irqLayout struct {
	errno        syscall.Errno
	flags, count uint32
}

// layout is what a client learns of a device once and never asks again.
type layout struct {
	flags   uint32 // of the device
	regions []regionLayout
	irqs    []irqLayout
	config  []byte
}

// difference says how l, of a new server, differs from old in what the client
// relies on; "" if it does not.
func (l *layout) difference(old *layout) string {
	if l.flags != old.flags {
		return fmt.Sprintf("device flags %#x became %#x", old.flags, l.flags)
	}
	if len(l.regions) != len(old.regions) {
		return fmt.Sprintf("%d regions became %d", len(old.regions), len(l.regions))
	}
	for i, r := range l.regions {
		switch o := old.regions[i]; {
		case r.errno != o.errno:
			return fmt.Sprintf("region %d (%s): answer %d became %d", i, regionName(i), o.errno, r.errno)
		case r.size != o.size:
			return fmt.Sprintf("region %d (%s): size %#x became %#x", i, regionName(i), o.size, r.size)
		case r.flags != o.flags:
			return fmt.Sprintf("region %d (%s): flags %#x became %#x", i, regionName(i), o.flags, r.flags)
		}
	}
	if len(l.irqs) != len(old.irqs) {
		return fmt.Sprintf("%d irq indexes became %d", len(old.irqs), len(l.irqs))
	}
	for i, q := range l.irqs {
		if o := old.irqs[i]; q != o {
			return fmt.Sprintf("irq %d: count %d, flags %#x became count %d, flags %#x", i, o.count, o.flags, q.count, q.flags)
		}
	}
	return configDifference(l.config, old.config)
}

// configDifference compares what never changes in a configuration space and
// what the client has built its own view on.
func configDifference(now, old []byte) string {
	if len(now) < cfgPlainEnd || len(old) < cfgPlainEnd {
		return ""
	}
	for _, f := range []struct {
		name     string
		at, size int
	}{{"vendor and device", 0, 4}, {"class", 9, 3}, {"header type", cfgHeaderType, 1}, {"subsystem", 0x2c, 4}, {"interrupt pin", 0x3d, 1}} {
		if a, b := old[f.at:f.at+f.size], now[f.at:f.at+f.size]; !slices.Equal(a, b) {
			return fmt.Sprintf("config space: %s % x became % x", f.name, a, b)
		}
	}
	for i := range plainBARs {
		// The type is in the low bits; in the upper half of a 64-bit BAR they
		// are part of an address, and equal at the start of a device.
		if a, b := old[cfgBAR0+4*i]&0xf, now[cfgBAR0+4*i]&0xf; a != b {
			return fmt.Sprintf("config space: type of BAR%d %#x became %#x", i, a, b)
		}
	}
	if a, b := capabilities(old), capabilities(now); !slices.Equal(a, b) {
		return fmt.Sprintf("config space: capabilities %v became %v", a, b)
	}
	return ""
}

func (c capability) String() string { return fmt.Sprintf("%#02x at %#02x", c.id, c.at) }

func regionName(i int) string {
	switch {
	case i < 6:
		return fmt.Sprintf("BAR%d", i)
	case i == 6:
		return "ROM"
	case i == regionConfig:
		return "config space"
	case i == 8:
		return "VGA"
	}
	return "device specific"
}

// describeLocked answers what a client asks of the layout of the device; false
// if r asks something else. Areas to mmap and file descriptors to signal are
// left out: they would be those of a server that ends.
func (s *session) describeLocked(r *request) bool {
	index := uint32(0)
	need := 0
	switch r.cmd {
	case vfiouser.CommandDeviceInfo:
		need = deviceInfoSize
	case vfiouser.CommandRegionInfo:
		need = regionInfoSize
	case vfiouser.CommandRegionIOFDs:
		need = ioFDsSize
	case vfiouser.CommandIRQInfo:
		need = irqInfoSize
	default:
		return false
	}
	if len(r.payload) < need || native32(r.payload, 0) < uint32(need) {
		s.replyError(r, fmt.Errorf("%v in %d bytes: %w", r.cmd, len(r.payload), syscall.EINVAL))
		return true
	}
	if need >= 12 {
		index = native32(r.payload, 8)
	}
	l := s.layout
	switch r.cmd {
	case vfiouser.CommandDeviceInfo:
		s.reply(r, words(nil, deviceInfoSize, l.flags, uint32(len(l.regions)), uint32(len(l.irqs))))
	case vfiouser.CommandIRQInfo:
		if uint64(index) >= uint64(len(l.irqs)) {
			s.replyError(r, fmt.Errorf("irq index %d: %w", index, syscall.EINVAL))
		} else if q := l.irqs[index]; q.errno != 0 {
			s.replyError(r, q.errno)
		} else {
			s.reply(r, words(nil, irqInfoSize, q.flags, index, q.count))
		}
	default:
		if uint64(index) >= uint64(len(l.regions)) {
			s.replyError(r, fmt.Errorf("region %d: %w", index, syscall.EINVAL))
		} else if g := l.regions[index]; g.errno != 0 {
			s.replyError(r, g.errno)
		} else if r.cmd == vfiouser.CommandRegionIOFDs {
			s.reply(r, words(nil, ioFDsSize, 0, index, 0))
		} else {
			p := words(nil, regionInfoSize, g.flags, index, 0)
			s.reply(r, nativeAppend64(nativeAppend64(p, g.size), 0))
		}
	}
	return true
}
