// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"slices"
	"testing"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// TestMaps lists the maps in order, while they come and go too.
func TestMaps(t *testing.T) {
	srv, c := start(t, nil)
	d := srv.DMA()
	if got := slices.Collect(d.Maps()); got != nil {
		t.Errorf("maps %+v", got)
	}
	f := vfiousertest.Memory(t, 1<<20)
	var want []vfiouser.Map
	for _, i := range []uint64{5, 3, 9, 1, 0xf_ffff_ffff_ffff} {
		mapAll(t, c, f, mapping{i << 12, 4096, 0, rd | wr})
		want = append(want, vfiouser.Map{IOVA: i << 12, Size: 4096, Prot: rd | wr, Backed: true})
	}
	mapAll(t, c, nil, mapping{0x100000, 0x300000, 0, rd})
	want = append(want, vfiouser.Map{IOVA: 0x100000, Size: 0x300000, Prot: rd})
	slices.SortFunc(want, func(a, b vfiouser.Map) int {
		if a.IOVA < b.IOVA {
			return -1
		}
		return 1
	})
	if got := slices.Collect(d.Maps()); !slices.Equal(got, want) {
		t.Errorf("maps %+v, want %+v", got, want)
	}
	var got []vfiouser.Map
	for m := range d.Maps() {
		got = append(got, m)
		if m.IOVA == 3<<12 {
			if _, err := c.Unmap(0, 0x100000); err != nil {
				t.Fatal(err)
			}
		}
		if m.IOVA == 0x100000 {
			break
		}
	}
	if w := []vfiouser.Map{want[0], want[1], want[4]}; !slices.Equal(got, w) {
		t.Errorf("maps %+v, want %+v", got, w)
	}
	// So many that the tree has pages above pages, with gaps in it.
	const many = 5000
	for i := range uint64(many) {
		mapAll(t, c, f, mapping{1<<32 + i*8192, 4096, 0, rd})
	}
	for i := range uint64(many / 100) {
		if _, err := c.Unmap(1<<32+i*100*8192, 70*8192); err != nil {
			t.Fatal(err)
		}
	}
	i := uint64(0)
	for m := range d.Maps() {
		if m.IOVA < 1<<32 || m.IOVA > 1<<33 {
			continue
		}
		if i%100 == 0 {
			i += 70
		}
		if w := 1<<32 + i*8192; m.IOVA != w {
			t.Fatalf("map at %#x, want %#x", m.IOVA, w)
		}
		i++
	}
	if i != many {
		t.Errorf("%d maps", i)
	}
}

// TestOwnLimit asks for more than the client itself takes: the limit on a
// request is the server's.
func TestOwnLimit(t *testing.T) {
	const E2BIG = 7
	cfg := vfiousertest.Config()
	cfg.MaxTransfer = 2048
	_, conn := vfiousertest.Serve(t, vfiousertest.NewDevice(cfg), cfg)
	p := vfiousertest.NewPeer(t, conn)
	if got := p.Version(`{"capabilities":{"max_data_xfer_size":1024}}`); got != `{"capabilities":{"max_data_xfer_size":1024}}` {
		t.Errorf("version %s", got)
	}
	data := pattern(2048)
	expect(t, p.Do(region(1, 10, 0, 0, 2048, data...)), 0)
	r := p.Do(region(2, 9, 0, 0, 2048))
	if expect(t, r, 0); len(r.Payload) != 16+2048 || !slices.Equal(r.Payload[16:], data) {
		t.Errorf("read %d bytes", len(r.Payload))
	}
	expect(t, p.Do(region(3, 9, 0, 0, 2049)), E2BIG)
	expect(t, p.Do(region(4, 10, 0, 0, 2049, append(data, 0)...)), E2BIG)
}
