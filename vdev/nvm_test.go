// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"toebox/firmware"
)

// testImage is an image in literal bytes (SPEC.md §10).
func testImage() []byte {
	b := make([]byte, 512)
	copy(b, "TOENVM01")
	copy(b[16:], []byte{0x02, 0x11, 0x22, 0x33, 0x44, 0x55})
	copy(b[24:], "SN-1")
	copy(b[56:], "firmware x")
	b[120] = 2
	copy(b[128:], []byte{0x09, 0x02, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})    // NAGLE 1
	copy(b[144:], []byte{0x07, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x80}) // RECEIVE_WINDOW
	binary.LittleEndian.PutUint32(b[8:], crc32.ChecksumIEEE(b[12:]))
	return b
}

// nvmSet does one command of the registers and returns NVM_STATUS.
func (r *rig) nvmDo(addr, data, command uint32) uint32 {
	r.Helper()
	r.set(0x100, addr)
	r.set(0x104, data)
	r.set(0x108, command)
	return r.poll(0x10c, 1)
}

func TestNVMFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nvm")
	if err := os.WriteFile(path, testImage(), 0o600); err != nil {
		t.Fatal(err)
	}
	r := enabled(t, func(c *Config) { c.NVMPath = path })
	id := r.fw.id
	if id.MAC != [6]byte{2, 0x11, 0x22, 0x33, 0x44, 0x55} || id.Serial != "SN-1" || id.Name != "firmware x" ||
		len(id.Defaults) != 2 || id.Defaults[0x209] != 1 || id.Defaults[0x207] != 0x8000000000010000 {
		t.Errorf("identity %+v", id)
	}
	r.want(0x30, 0x33221102)
	r.want(0x34, 0x00005544)
	r.want(0x1c, crc32.ChecksumIEEE([]byte("firmware x")))
	r.want(0x20, 1)
	r.want(0x10c, 0)

	// Write a MAC address through the registers, commit, reset.
	if s := r.nvmDo(16, 0x03020102, 2); s != 2 {
		t.Errorf("write: status %d", s)
	}
	if s := r.nvmDo(16, 0, 1); s != 2 || r.get(0x104) != 0x03020102 {
		t.Errorf("read: status %d, data %#x", s, r.get(0x104))
	}
	if s := r.nvmDo(0, 0, 3); s != 2 {
		t.Errorf("commit: status %d", s)
	}
	r.want(0x30, 0x33221102) // until the next reset
	old := r.fw
	_ = r.f.Reset()
	r.setConfig(0x04, 2, 6)
	r.want(0x30, 0x03020102)
	r.want(0x18, 8) // new firmware
	if got := old.take(); !slices.Equal(got[len(got)-2:], []string{"reset", "close"}) || r.fw.id.MAC != [6]byte{2, 1, 2, 3, 0x44, 0x55} {
		t.Errorf("old firmware %q, new MAC %x", got, r.fw.id.MAC)
	}
	if got := r.getConfig(0x10c-8, 4); got != 0xfe034455 {
		t.Errorf("serial number %#x", got)
	}
	_ = r.f.Reset()
	r.setConfig(0x04, 2, 6)
	r.want(0x18, 8) // unchanged: the firmware stays

	// Power cycle.
	b, err := os.ReadFile(path)
	if err != nil || len(b) != 512 || !bytes.Equal(b[16:22], []byte{2, 1, 2, 3, 0x44, 0x55}) ||
		binary.LittleEndian.Uint32(b[8:]) != crc32.ChecksumIEEE(b[12:]) {
		t.Errorf("file % x, %v", b[:24], err)
	}
	if names, _ := filepath.Glob(path + "*"); len(names) != 1 {
		t.Errorf("files left: %q", names)
	}

	// Factory defaults, uncommitted, are gone at a reset; committed, they stay.
	factory := encodeNVM(factoryIdentity(1))
	r.nvmDo(0, 0, 4)
	r.nvmDo(16, 0, 1)
	r.want(0x104, binary.LittleEndian.Uint32(factory[16:]))
	_ = r.f.Reset()
	r.setConfig(0x04, 2, 6)
	r.nvmDo(16, 0, 1)
	r.want(0x104, 0x03020102)
	r.nvmDo(0, 0, 4)
	r.nvmDo(0, 0, 3)
	if b, _ := os.ReadFile(path); !bytes.Equal(b, factory[:]) {
		t.Error("the file is not the factory's image")
	}
}

func TestNVMBadCommands(t *testing.T) {
	r := enabled(t, nil)
	for _, c := range []struct{ addr, command, status uint32 }{
		{508, 1, 2}, {512, 1, 3}, {2, 1, 3}, {0xfffffffc, 2, 3}, {0xffffffff, 1, 3}, {0, 0, 3}, {0, 5, 3}, {0, 0xffffffff, 3},
	} {
		if got := r.nvmDo(c.addr, 0, c.command); got != c.status {
			t.Errorf("command %#x at %#x: status %d, want %d", c.command, c.addr, got, c.status)
		}
	}
	// A shadow that is no image is not committed.
	r.nvmDo(120, 25, 2)
	if got := r.nvmDo(0, 0, 3); got != 3 {
		t.Errorf("commit of 25 defaults: status %d", got)
	}
	_ = r.f.Reset()
	r.setConfig(0x04, 2, 6)
	r.want(0x18, 7)
}

// TestNVMCorrupt damages the file in every way that decode looks at.
func TestNVMCorrupt(t *testing.T) {
	seal := func(b []byte) []byte {
		binary.LittleEndian.PutUint32(b[8:], crc32.ChecksumIEEE(b[12:512]))
		return b
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":            func(b []byte) []byte { return nil },
		"short":            func(b []byte) []byte { return b[:511] },
		"long":             func(b []byte) []byte { return append(b, 0) },
		"magic":            func(b []byte) []byte { b[0] = 'X'; return seal(b) },
		"check sum":        func(b []byte) []byte { b[300] ^= 1; return b },
		"flags unsummed":   func(b []byte) []byte { b[12] = 1; return b },
		"reserved":         func(b []byte) []byte { b[22] = 1; return seal(b) },
		"reserved 124":     func(b []byte) []byte { b[124] = 1; return seal(b) },
		"entry's reserved": func(b []byte) []byte { b[130] = 1; return seal(b) },
		"entry's u32":      func(b []byte) []byte { b[135] = 1; return seal(b) },
		"count":            func(b []byte) []byte { b[120] = 25; return seal(b) },
		"group address":    func(b []byte) []byte { b[16] |= 1; return seal(b) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "nvm")
			if err := os.WriteFile(path, damage(testImage()), 0o600); err != nil {
				t.Fatal(err)
			}
			r := enabled(t, func(c *Config) { c.NVMPath = path })
			r.want(0x20, 1|1<<3)
			r.want(0x10c, 1<<8)
			if r.fw.id.Serial != factoryIdentity(1).Serial {
				t.Errorf("serial %q", r.fw.id.Serial)
			}
			if b, _ := os.ReadFile(path); !bytes.Equal(b, encodeNVM(factoryIdentity(1))[:]) {
				t.Error("the file was not replaced")
			}
			r.set(0x10, 1<<31)
			r.want(0x20, 1)
			again := enabled(t, func(c *Config) { c.NVMPath = path })
			again.want(0x20, 1)
			again.want(0x10c, 0)
		})
	}
}

// TestNVMUnusable: files that cannot be read or written are errors of the host.
func TestNVMUnusable(t *testing.T) {
	dir := t.TempDir()
	start := func(firmware.Chip, Identity, uint32) (Firmware, Counters, error) {
		return &fakeFirmware{}, &fakeCounters{}, nil
	}
	if _, err := New(Config{Start: start, NVMPath: dir}); err == nil || !strings.Contains(err.Error(), "non-volatile image") {
		t.Errorf("a folder as image: %v", err)
	}
	if _, err := New(Config{Start: func(firmware.Chip, Identity, uint32) (Firmware, Counters, error) {
		return nil, nil, errors.New("no engine")
	}}); err == nil || !strings.Contains(err.Error(), "no engine") {
		t.Errorf("firmware that does not start: %v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("no firmware: no error")
	}
	r := enabled(t, func(c *Config) { c.NVMPath = filepath.Join(dir, "gone", "nvm") })
	if got := r.nvmDo(0, 0, 3); got != 3 {
		t.Errorf("commit into a folder that is not there: status %d", got)
	}
}

// TestRestartFails: STATUS.FAILED stands until a reset brings firmware that
// starts.
func TestRestartFails(t *testing.T) {
	starts := 0
	r := enabled(t, func(c *Config) {
		start := c.Start
		c.Start = func(chip firmware.Chip, id Identity, generation uint32) (Firmware, Counters, error) {
			if starts++; starts == 2 {
				return nil, nil, errors.New("no engine")
			}
			return start(chip, id, generation)
		}
	})
	r.nvmDo(16, 0x03020102, 2)
	r.nvmDo(0, 0, 3)
	r.set(0x10, 1<<31)
	r.want(0x14, 0x49)
	r.want(0x18, 7)
	r.set(0x10, 1<<31)
	r.want(0x14, 0x41)
	r.want(0x18, 8)
	r.want(0x30, 0x03020102)
}

// FuzzNVM decodes arbitrary images and encodes what they said.
func FuzzNVM(f *testing.F) {
	f.Add(testImage())
	f.Fuzz(func(t *testing.T, data []byte) {
		var b nvmImage
		copy(b[:], data)
		copy(b[:], "TOENVM01")
		b.seal()
		id, err := b.decode()
		if err != nil {
			return
		}
		again, err := encodeNVM(id).decode()
		if err != nil || again.MAC != id.MAC || again.Serial != id.Serial || again.Name != id.Name {
			t.Fatalf("%+v became %+v, %v", id, again, err)
		}
	})
}
