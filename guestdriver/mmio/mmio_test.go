// SPDX-License-Identifier: Apache-2.0

package mmio

import (
	"bytes"
	"testing"
)

func TestAccess(t *testing.T) {
	m := make([]byte, 16)
	Store(m, 4, 0x11223344)
	if want := []byte{0, 0, 0, 0, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0, 0}; !bytes.Equal(m, want) {
		t.Errorf("memory is % x", m)
	}
	if v := Load(m, 4); v != 0x11223344 {
		t.Errorf("read %#x", v)
	}
	if n := testing.AllocsPerRun(10, func() { Store(m, 8, Load(m, 4)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	for _, off := range []uint32{16, ^uint32(3)} {
		for name, access := range map[string]func(){"load": func() { Load(m, off) }, "store": func() { Store(m, off, 1) }} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s at %#x is beyond the mapping and was done", name, off)
					}
				}()
				access()
			}()
		}
	}
}
