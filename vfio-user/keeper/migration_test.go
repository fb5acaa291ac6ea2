// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"syscall"
	"testing"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// TestMigration moves a device's state and its dirty pages through a keeper, in
// messages as long as there may be; and a new server, which knows of neither,
// does not pretend to.
func TestMigration(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	cfg := vfiousertest.Config()
	dev := vfiousertest.NewMigrator(cfg)
	dev.Set(vfiouser.RegionConfig, 0, space())
	srv := f.device(vfiousertest.Precopier{Migrator: dev}, cfg)
	c := r.dial(vfiouser.ClientConfig{Timeout: patience})
	r.ready(1)

	ram := vfiousertest.Memory(t, 1<<20)
	if err := c.Map(1<<20, 1<<20, 0, 3, ram); err != nil {
		t.Fatal(err)
	}
	const most = 8 << 20 * 4096 // a bitmap of 1 MiB
	if size, err := c.StartDirtyLog(4096); size != 4096 || err != nil {
		t.Fatalf("start of a log: %d, %v", size, err)
	}
	dirty := func(what string, words []uint64, err error) {
		t.Helper()
		if err != nil || len(words) != 1<<17 || words[4] != 2 || slices.ContainsFunc(slices.Delete(words, 4, 5), func(w uint64) bool { return w != 0 }) {
			t.Errorf("%s: %d words, %v", what, len(words), err)
		}
	}
	if err := srv.DMA().Write(1<<20+4096, []byte{1}); err != nil {
		t.Fatal(err)
	}
	words, err := c.DirtyPages(0, most, 4096)
	dirty("pages", words, err)
	if err := srv.DMA().Write(1<<20+4096, []byte{1}); err != nil {
		t.Fatal(err)
	}
	n, words, err := c.UnmapDirty(0, most, 4096)
	if dirty("unmap", words, err); n != 1<<20 {
		t.Errorf("%#x bytes unmapped", n)
	}

	state := bytes.Repeat([]byte("state"), 1<<18)
	dev.SetState(state)
	if precopy, err := c.Migration(); !precopy || err != nil {
		t.Errorf("migration: %v, %v", precopy, err)
	}
	if err := c.SetMigrationState(vfiouser.StatePrecopy); err != nil {
		t.Fatal(err)
	}
	if initial, _, err := c.PrecopyInfo(); initial != uint64(len(state)) || err != nil {
		t.Errorf("precopy info %d, %v", initial, err)
	}
	var got []byte
	for b := make([]byte, 2<<20); ; {
		n, err := c.ReadState(b)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b[:n]...)
	}
	if !bytes.Equal(got, state) {
		t.Errorf("%d bytes of state", len(got))
	}
	if err := errors.Join(c.SetMigrationState(vfiouser.StateResuming), c.WriteState(state)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(dev.Written(), state) {
		t.Error("the state that was written is another")
	}

	next := vfiousertest.NewMigrator(cfg)
	next.Set(vfiouser.RegionConfig, 0, space())
	f.device(vfiousertest.Precopier{Migrator: next}, cfg)
	(<-f.made).kill()
	r.ready(2)
	if s, err := c.MigrationState(); s != vfiouser.StateRunning || err != nil {
		t.Errorf("state of a new server: %v, %v", s, err)
	}
	if _, err := c.DirtyPages(0, 4096, 4096); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("pages from a new server: %v", err)
	}
	if err := c.WriteState(state[:1]); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("state to a new server: %v", err)
	}
}
