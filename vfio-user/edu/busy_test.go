// SPDX-License-Identifier: Apache-2.0

package edu

import "testing"

// TestComputing looks at the device while it computes, which it cannot finish
// as long as the test has the lock.
func TestComputing(t *testing.T) {
	d, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.writeLocked(0x08, 5)
	if got := d.readLocked(0x20); got != 0x01 {
		t.Errorf("status %#x while computing", got)
	}
	d.writeLocked(0x08, 6) // ignored
	d.writeLocked(0x20, 0xffffffff)
	if got := d.readLocked(0x20); got != 0x81 {
		t.Errorf("status %#x while computing, interrupt wanted", got)
	}
	if got := d.readLocked(0x08); got != 5 {
		t.Errorf("factorial register %d while computing", got)
	}
	d.mu.Unlock()
	d.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if f, s, i := d.readLocked(0x08), d.readLocked(0x20), d.readLocked(0x24); f != 120 || s != 0x80 || i != 1 {
		t.Errorf("factorial %d, status %#x, interrupts %#x", f, s, i)
	}
}
