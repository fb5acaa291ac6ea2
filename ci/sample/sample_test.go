// SPDX-License-Identifier: Apache-2.0

package sample

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"toebox/images/qtest"
	"toebox/images/toolchain/toolchaintest"
	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/sample"
	"toebox/vfio-user/vfiousertest"
)

func TestMain(m *testing.M) { vfiousertest.Main(m) }

const (
	bar0, bar1 = 0xe0000000, 0xe0010000
	line       = 22 // a q35's INTA# of slot 6 at the I/O APIC
	patience   = 60 * time.Second
)

// rig is a machine with the device in slot 6.
type rig struct {
	t   *testing.T
	m   *qtest.Machine
	dev *sample.Device
	at  qtest.BDF
}

func newRig(t *testing.T) *rig {
	dir, err := os.MkdirTemp("", "sample") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, at: qtest.NewBDF(0, 6, 0)}
	if r.dev, err = sample.New(sample.Config{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.dev.Close() })
	path := filepath.Join(dir, "device")
	l, err := vfiouser.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- r.dev.Server().Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		l.Close()
	})
	r.m, err = qtest.Start(t.Context(), qtest.Config{
		Command: toolchaintest.QEMU(t).Command, Dir: dir, Memory: 64 << 20,
		Args: []string{"-device", fmt.Sprintf(`{"driver":"vfio-user-pci","addr":"6.0","socket":{"type":"unix","path":%q}}`, path)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.m.Close(); err != nil {
			t.Error(err)
		}
		if log := r.m.Log(); log != "" {
			t.Errorf("QEMU says: %s", log)
		}
		if s := r.dev.Server().Stats(); s.Errors != 0 || s.NoReplyFailed != 0 || s.StrayReplies != 0 {
			t.Errorf("the server refused messages: %+v", s)
		}
	})
	r.check(r.m.InterceptIn("ioapic"))
	return r
}

func (r *rig) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%v\nQEMU says: %s", err, r.m.Log())
	}
}

// place does what firmware does after a reset.
func (r *rig) place() {
	r.t.Helper()
	for reg, v := range map[uint8]uint32{0x10: bar0, 0x14: bar1, 0x04: 6} {
		r.check(r.m.WriteConfig(r.at, reg, 4, v))
	}
	for reg, want := range map[uint8]uint32{0x00: 0xbeefdead, 0x2c: 0xbabecafe, 0x10: bar0, 0x14: bar1} {
		if v, err := r.m.ReadConfig(r.at, reg, 4); v != want || err != nil {
			r.t.Errorf("configuration space at %#x is %#x, %v", reg, v, err)
		}
	}
}

// messages returns how many accesses to regions have come as messages.
func (r *rig) messages() uint64 {
	s := r.dev.Server().Stats()
	return s.RegionReads + s.RegionWrites
}

// load reads BAR1 and reports whether that took a message.
func (r *rig) load(offset uint64) (v uint32, byMessage bool) {
	r.t.Helper()
	before := r.messages()
	v, err := r.m.Read32(bar1 + offset)
	r.check(err)
	return v, r.messages() != before
}

// TestQEMU has the guest map BAR1, set the alarm and take the interrupt, and
// resets the machine.
func TestQEMU(t *testing.T) {
	r := newRig(t)
	for round := range uint32(2) {
		r.place()
		if v, byMessage := r.load(0x2ffc); v != 0 || byMessage {
			t.Errorf("BAR1 holds %#x after a reset, by message: %v", v, byMessage)
		}
		before := r.messages()
		r.check(r.m.Write32(bar1+0x2ffc, 0x12345678+round))
		if n := r.messages() - before; n != 0 {
			t.Errorf("%d messages for a store to memory that is mapped", n)
		}
		if v, byMessage := r.load(0x3000); v != 0 || !byMessage {
			t.Errorf("beyond it there is %#x, by message: %v", v, byMessage)
		}

		// The alarm: now. From the interrupt on QEMU has the guest reach no memory
		// past itself, so that it sees accesses which end the interrupt.
		r.check(r.m.Write64(bar0, uint64(time.Now().Unix())))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		r.check(r.m.WaitIRQ(ctx, line, true))
		cancel()
		if v, byMessage := r.load(0x2ffc); v != 0x12345678+round || !byMessage {
			t.Errorf("the device has %#x, by message: %v", v, byMessage)
		}
		if v, err := r.m.Read64(bar0); v > 1000 || err != nil {
			t.Errorf("%d seconds since the alarm, %v", v, err)
		}
		for deadline := time.Now().Add(patience); r.m.IRQ(line); {
			_, err := r.m.ReadConfig(r.at, 0, 4) // has QEMU look at its eventfds
			r.check(err)
			if time.Now().After(deadline) {
				t.Fatal("the pin stays asserted")
			}
		}
		if s := r.dev.Stats(); s != (sample.Stats{Alarms: uint64(round) + 1}) {
			t.Errorf("stats %+v", s)
		}
		r.check(r.m.Out8(0xcf9, 6))
		for deadline := time.Now().Add(patience); ; {
			v, err := r.m.ReadConfig(r.at, 0x14, 4)
			r.check(err)
			if v == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("no reset")
			}
		}
	}
}
