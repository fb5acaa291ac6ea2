// SPDX-License-Identifier: Apache-2.0

package qtest

import "fmt"

// PCI configuration mechanism 1 (PCI 3.0 §3.2.2.3.2).
const (
	portConfigAddress = 0xcf8
	portConfigData    = 0xcfc
	configEnable      = 1 << 31
)

// A BDF names a PCI function: bus (8), device (5), function (3).
type BDF uint16

// NewBDF makes a BDF of its parts.
func NewBDF(bus, device, function uint8) BDF {
	return BDF(bus)<<8 | BDF(device&31)<<3 | BDF(function&7)
}

func (b BDF) String() string {
	v := uint16(b) // of a BDF %x would call String
	return fmt.Sprintf("%02x:%02x.%x", v>>8, v>>3&31, v&7)
}

// ReadConfig reads 1, 2 or 4 bytes of configuration space; offset is below 256 and
// aligned.
func (c *Client) ReadConfig(f BDF, offset uint8, size int) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.selectLocked(f, offset, size); err != nil {
		return 0, err
	}
	c.out = fmt.Appendf(c.out[:0], "in%c %#x", width(size), portConfigData+uint16(offset&3))
	s, err := c.exchangeLocked()
	if err != nil {
		return 0, err
	}
	var v uint32
	if _, err := fmt.Sscanf(s, "0x%x", &v); err != nil {
		return 0, fmt.Errorf("qtest: answer %.40q: %w", s, err)
	}
	return v, nil
}

// WriteConfig writes 1, 2 or 4 bytes of configuration space.
func (c *Client) WriteConfig(f BDF, offset uint8, size int, v uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.selectLocked(f, offset, size); err != nil {
		return err
	}
	c.out = fmt.Appendf(c.out[:0], "out%c %#x %#x", width(size), portConfigData+uint16(offset&3), v)
	_, err := c.exchangeLocked()
	return err
}

// selectLocked addresses the dword that offset lies in; the lock keeps it addressed
// for the access that follows.
func (c *Client) selectLocked(f BDF, offset uint8, size int) error {
	if size != 1 && size != 2 && size != 4 || int(offset)%size != 0 {
		return fmt.Errorf("qtest: config access of %d bytes at %#x", size, offset)
	}
	c.out = fmt.Appendf(c.out[:0], "outl %#x %#x", portConfigAddress, configEnable|uint32(f)<<8|uint32(offset&^3))
	_, err := c.exchangeLocked()
	return err
}

func width(size int) byte { return [...]byte{1: 'b', 2: 'w', 4: 'l'}[size] }
