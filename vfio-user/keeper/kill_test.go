// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"encoding/binary"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// driver is a driver of the teaching device that copes with restarts.
type driver struct {
	t    *testing.T
	c    *vfiouser.Client
	ram  *os.File
	seq  uint32
	last atomic.Uint64 // transfers acknowledged
}

const (
	source = 0x10000 // in guest memory; zero itself is where a lost address points
	target = 0x40000
	slots  = 64
)

func (d *driver) write(reg uint64, v uint64, size int) {
	b := binary.LittleEndian.AppendUint64(nil, v)
	if err := d.c.PostRegion(0, reg, b[:size]); err != nil {
		d.t.Fatal(err)
	}
}

func (d *driver) read(reg uint64) uint32 {
	var b [4]byte
	if err := d.c.ReadRegion(0, reg, b[:]); err != nil {
		d.t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(b[:])
}

// copy has the device copy 64 bytes within guest memory. false: the device was
// restarted meanwhile, and nothing is known.
func (d *driver) copy() bool {
	d.seq++
	d.write(0x04, uint64(d.seq), 4) // liveness: a new device knows nothing of it
	slot := uint64(d.seq%slots) * 64
	var want [64]byte
	binary.LittleEndian.PutUint32(want[:], d.seq)
	copy(want[4:], "a transfer")
	if _, err := d.ram.WriteAt(want[:], int64(source+slot)); err != nil {
		d.t.Fatal(err)
	}
	for _, x := range [][3]uint64{{source + slot, 0x40000, 1}, {0x40000, target + slot, 3}} {
		d.write(0x80, x[0], 8)
		d.write(0x88, x[1], 8)
		d.write(0x90, 64, 8)
		d.write(0x98, x[2], 8)
		for deadline := time.Now().Add(patience); d.read(0x98)&1 != 0; {
			if time.Now().After(deadline) {
				d.t.Fatal("a transfer does not end")
			}
		}
	}
	if d.read(0x04) != ^d.seq {
		return false
	}
	var got [64]byte
	if _, err := d.ram.ReadAt(got[:], int64(target+slot)); err != nil {
		d.t.Fatal(err)
	}
	if !bytes.Equal(got[:], want[:]) {
		d.t.Fatalf("transfer %d acknowledged; memory holds %q", d.seq, got)
	}
	d.last.Add(1)
	return true
}

// TestKill kills the server under load, many times.
func TestKill(t *testing.T) {
	const kills = 25
	r := start(t, Config{Command: command(t, "fd"), Patience: patience, StartTimeout: patience, BackOff: time.Millisecond, MaxBackOff: 2 * time.Millisecond})
	c := r.dial(vfiouser.ClientConfig{})
	ram := vfiousertest.Memory(t, 1<<20)
	if err := c.Map(0, 1<<20, 0, vfiouser.ProtRead|vfiouser.ProtWrite, ram); err != nil {
		t.Fatal(err)
	}
	irq := vfiousertest.NewEventFD(t)
	if err := c.AssignIRQ(vfiouser.IRQMSI, 0, irq.FD()); err != nil {
		t.Fatal(err)
	}
	for _, w := range []struct {
		at uint64
		b  []byte
	}{{0x42, []byte{0x81, 0}}, {0x10, []byte{0, 0, 0, 0xe0}}, {0x04, []byte{6, 0}}} {
		if err := c.WriteRegion(vfiouser.RegionConfig, w.at, w.b); err != nil {
			t.Fatal(err)
		}
	}
	d := &driver{t: t, c: c, ram: ram}
	for kill := range uint32(kills) {
		e := r.ready(kill + 1)
		for done := 0; done < 5; {
			if d.copy() {
				done++
			}
		}
		// The interrupt finds its way, also by state put back.
		irq.Take()
		d.write(0x60, 1, 4)
		irq.Wait()
		k := time.AfterFunc(time.Duration(d.seq%7)*100*time.Microsecond, func() { syscall.Kill(e.PID, syscall.SIGKILL) })
		for s := r.k.Stats(); s.Starts == uint64(kill+1) && s.Ready; s = r.k.Stats() {
			d.copy()
		}
		k.Stop()
	}
	if s := r.k.Stats(); s.InStead != s.Dropped {
		t.Errorf("reads were answered in the server's stead: %+v", s)
	}
	t.Logf("%d transfers over %d kills; %+v", d.last.Load(), kills, r.k.Stats())
}
