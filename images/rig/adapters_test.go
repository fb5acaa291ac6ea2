// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestOf: each adapter has a network and files of its own; the port is the first one's.
func TestOf(t *testing.T) {
	o := Options{Net: "nat", More: []string{"tap:if=b", "nat"}, Port: 8080, Pcap: "/x.y/frames.pcapng", NVM: "/x.y/image", Seed: 7}
	if n := o.adapters(); n != 3 {
		t.Errorf("%d adapters", n)
	}
	for n, want := range []Options{
		{Net: "nat", Port: 8080, Pcap: "/x.y/frames.pcapng", NVM: "/x.y/image", Seed: 7},
		{Net: "tap:if=b", Pcap: "/x.y/frames-1.pcapng", NVM: "/x.y/image-1", Seed: 7, card: 1},
		{Net: "nat", Pcap: "/x.y/frames-2.pcapng", NVM: "/x.y/image-2", Seed: 7, card: 2},
	} {
		got := o.Of(n)
		if got.adapters() != 1 || got.Net != want.Net || got.Port != want.Port || got.Pcap != want.Pcap || got.NVM != want.NVM || got.Seed != want.Seed || got.card != want.card {
			t.Errorf("adapter %d: %+v", n, got)
		}
	}
	r := Record{Adapters: 3}
	for _, n := range []int{0, 2} {
		if err := r.Has(n); err != nil {
			t.Error(err)
		}
	}
	for _, n := range []int{-1, 3} {
		var usage *UsageError
		if err := r.Has(n); !errors.As(err, &usage) {
			t.Errorf("adapter %d: %v", n, err)
		}
	}
}

// TestRIG09_Run: a machine with two adapters. Each has a keeper and a device of its
// own, and a program in the guest that serves over it; firmware, and deaths, of one are
// nothing to the other.
func TestRIG09_Run(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine, some seconds: run without -short")
	}
	m := upForReload(t, func(o *Options) { o.More = []string{"nat"} })
	m.answers()
	for n := range 2 {
		in := m.exec("sh", "-c", fmt.Sprintf("TOEBOX_ADAPTER=%d toebox-guest attr MAC", n))
		if s := m.stats(n); s.Generation != 1 || !strings.Contains(in, s.MAC) || s.MAC == m.stats(1-n).MAC {
			t.Errorf("adapter %d is %+v, and in the guest %s", n, s, in)
		}
	}
	load := func(adapter int) Loaded {
		t.Helper()
		program, err := NewFirmware(Paths{State: filepath.Dir(filepath.Dir(m.Dir))}, m.Record)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(m.devices[0].kept.program)
		if err == nil {
			err = os.WriteFile(program, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		done, err := SendLoad(t.Context(), m.Record, Load{Program: program, Name: "the same", Adapter: adapter}, nobody)
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	if done := load(1); done.Error != "" || done.Generation != 2 {
		t.Errorf("load: %+v", done)
	}
	if done := load(2); !strings.Contains(done.Error, "no adapter 2") {
		t.Errorf("load of an adapter that is not there: %+v", done)
	}
	if err := syscall.Kill(m.devices[1].kept.pidNow(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.told.wait(t, "adapter 1: the device process died (generation 2")
	m.told.wait(t, "adapter 1: firmware generation 3 serves")
	if in, s := m.exec("toebox-guest", "-adapter", "1", "attr", "MAC"), m.stats(1); s.Generation != 3 || !strings.Contains(in, s.MAC) {
		t.Errorf("adapter 1 is %+v, and in the guest %s", s, in)
	}
	if n := m.generation(); n != 1 {
		t.Errorf("adapter 0 has generation %d", n)
	}
	m.answers()
	m.Close()
	if err := m.Wait(); err != nil {
		t.Errorf("the machine: %v", err)
	}
	for n, capture := range []string{m.capture, m.capture + "-1"} {
		if got := sections(t, capture); got != 1+2*n {
			t.Errorf("the capture of adapter %d has %d sections", n, got)
		}
	}
}
