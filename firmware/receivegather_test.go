// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"bytes"
	"slices"
	"testing"

	"toebox/vdev/abi"
)

const linkTransferSize, gatherThreshold = 0x0227, 0x0228

// TestReceiveDelayPosts lets the rate at which the host posts buffers say how
// long bytes wait.
func TestReceiveDelayPosts(t *testing.T) {
	r := newRig(t, 6)
	l := r.timeline()
	id, ep := r.connect()
	r.setAll(id, notifyDynamic, 2, notifyMax, 50*ms)
	post := func(at uint64) {
		t.Helper()
		l.to(at)
		r.post(r.buffer(abi.TypeBufferAvailable, id, 64))
		l.look()
	}
	for i := range uint64(4) {
		post(i * 10 * ms)
	}
	l.arrivals(ep, []step{{31 * ms, 1}}, []delivery{{31 * ms, 1}}) // three gaps say nothing
	post(40 * ms)
	l.arrivals(ep, []step{{45 * ms, 1}, {54 * ms, 2}}, []delivery{{55 * ms, 3}})
	post(100 * ms)
	l.arrivals(ep, []step{{100 * ms, 1}}, []delivery{{122*ms + ms/2, 1}}) // (10 + 10 + 10 + 60) / 4
	post(300 * ms)
	l.arrivals(ep, []step{{300 * ms, 1}}, []delivery{{300 * ms, 1}}) // beyond NOTIFY_MAX
	r.wantCounter(byPosts, 2)
	r.wantCounter(waits, 2)
}

// TestReceiveDelayConsumption lets the time that the host takes to post the next
// buffer say how long bytes wait.
func TestReceiveDelayConsumption(t *testing.T) {
	r := newRig(t, 6)
	l := r.timeline()
	id, ep := r.connect()
	r.setAll(id, notifyDynamic, 4, notifyMax, 50*ms)
	post := func(at uint64) {
		t.Helper()
		l.to(at)
		r.post(r.buffer(abi.TypeBufferAvailable, id, 64))
		l.look()
	}
	post(0)
	for i := range uint64(4) {
		at := (100*i + 10) * ms
		l.arrivals(ep, []step{{at, 1}, {at + ms, 1}}, []delivery{{at, 1}, {at + ms, 1}})
		post(at + (i+1)*ms) // 1 to 4 ms after the first
		post(at + 50*ms)    // nothing was told in between
	}
	l.arrivals(ep, []step{{500 * ms, 1}, {501 * ms, 1}}, []delivery{{502*ms + ms/2, 2}})
	r.wantCounter(byConsumption, 1)
	r.wantCounter(waits, 1)
}

// TestGather fills a large buffer in link transfers of 4 KiB, while bytes come
// fast.
func TestGather(t *testing.T) {
	const us = ms / 1000
	r := newRig(t, 6)
	l := r.timeline()
	id, ep := r.connect()
	r.setAll(id, linkTransferSize, 4096, gatherThreshold, 8192)
	b := abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Conn: id, Base: r.Chip.Alloc(1<<16, 4096), Length: 1 << 16}
	r.post(b)
	var dma []delivery
	r.Chip.OnView(func(iova uint64, n int, write bool) {
		if write && iova >= b.Base && iova < b.Base+uint64(b.Length) {
			dma = append(dma, delivery{iova - b.Base, n})
		}
	})
	l.arrivals(ep, []step{
		{0, 1024}, {us, 1024}, {2 * us, 1024}, {3 * us, 1024}, // nothing is known yet; a unit in 3 us
		{4 * us, 1024}, {5 * us, 1024}, {6 * us, 1024}, {7 * us, 1024}, // a unit
		{8 * us, 1024}, {9 * us, 1024}, // a part, for 6 us
		{15 * us, 1024}, {16 * us, 1024}, // the rest of the unit
		{17 * us, 1024}, {18 * us, 8192}, // two units, and a part, for 2 us
		{50_000 * us, 100}, {50_001 * us, 100}, // long ago
		{50_002 * us, 9000}, // a unit and more in 2 us
	}, []delivery{
		{0, 1024}, {us, 1024}, {2 * us, 1024}, {3 * us, 1024},
		{7 * us, 4096}, {14 * us, 2048}, {16 * us, 2048}, {18 * us, 8192}, {20 * us, 1024},
		{50_000 * us, 100}, {50_001 * us, 100}, {50_002 * us, 6968}, {50_006 * us, 2032},
	})
	r.Chip.OnView(nil)
	want := []delivery{{0, 1024}, {1024, 1024}, {2048, 1024}, {3072, 1024}, {4096, 4096}, {8192, 2048}, {10240, 2048},
		{12288, 4096}, {16384, 4096}, {20480, 1024}, {21504, 100}, {21604, 100}, {21704, 2872}, {24576, 4096}, {28672, 2032}}
	if !slices.Equal(dma, want) {
		t.Errorf("DMA %v\nwant %v", dma, want)
	}
	r.wantCounter(byUnits, 5) // the first is the rest of the unit that was the first to be known
	r.wantCounter(byParts, 3)
	r.wantCounter(waits, 8)
}

// TestGatherTransfers counts transfers of what waited by time.
func TestGatherTransfers(t *testing.T) {
	for _, c := range []struct {
		name      string
		threshold uint64
		transfers uint64
	}{{"gathered", 1, 1}, {"per packet", 0, 10}} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 6)
			l := r.timeline()
			id, ep := r.connect()
			r.setAll(id, notifyTime, 10*ms, notifyMax, 10*ms, gatherThreshold, c.threshold)
			r.post(abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Base: r.Chip.Alloc(4096, 4096), Length: 4096})
			l.arrivals(ep, []step{{0, 10}, {ms, 10}, {ms, 10}, {ms, 10}, {ms, 10}, {ms, 10}, {ms, 10}, {ms, 10}, {ms, 10}, {ms, 10}},
				[]delivery{{10 * ms, 100}})
			r.wantCounter(abi.CounterPayloadWrites, c.transfers)
			r.wantCounter(abi.CounterPayloadBytesWritten, 100)
			r.wantCounter(abi.CounterCopiesBytes, 100)
		})
	}
}

// TestGatherFault takes the memory of a buffer away in the middle of a transfer:
// no byte is lost.
func TestGatherFault(t *testing.T) {
	r := newRig(t, 6)
	l := r.timeline()
	id, ep := r.connect()
	r.setAll(id, notifyTime, 10*ms, notifyMax, 10*ms)
	own := abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Conn: id, Base: r.Chip.Alloc(8192, 4096), Length: 8192}
	gone := abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Base: 64, Length: 100}
	bulk := r.buffer(abi.TypeBufferAvailable, 0, 8192)
	r.post(own, gone, bulk)
	data := make([]byte, 5000)
	for i := range data {
		data[i] = byte(i * 31)
	}
	for i := 0; i < len(data); i += 500 {
		ep.Deliver(data[i : i+500])
	}
	l.look()
	r.Chip.Unmap(own.Base+4096, 4096)
	r.fw.StepPolicyClock(10 * ms)
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Aux: 39, Tag: own.Tag, Base: own.Base, Conn: id, Length: 4096,
	})
	r.expect(abi.Fields{Type: abi.TypeBufferDone, Flags: abi.FlagFinal, Aux: 39, Tag: gone.Tag, Base: gone.Base})
	r.expect(abi.Fields{
		Type: abi.TypeBufferReceive, Flags: abi.FlagFinal, Tag: bulk.Tag, Base: bulk.Base, Conn: id, Length: 904,
	})
	if !bytes.Equal(r.bytes(own)[:4096], data[:4096]) || !bytes.Equal(r.bytes(bulk)[:904], data[4096:]) {
		t.Error("other bytes were delivered")
	}
	r.wantCounter(abi.CounterBytesDelivered, 5000)
}

// TestGatherTiny lets bytes come one by one: a transfer has a bounded number of
// pieces.
func TestGatherTiny(t *testing.T) {
	r := newRig(t, 6)
	l := r.timeline()
	id, ep := r.connect()
	r.setAll(id, notifyTime, 10*ms, notifyMax, 10*ms)
	b := abi.Fields{Type: abi.TypeBufferAvailable, Tag: r.Tag(), Conn: id, Base: r.Chip.Alloc(8192, 4096), Length: 8192}
	r.post(b)
	data := make([]byte, 3000)
	for i := range data {
		data[i] = byte(i * 31)
		ep.Deliver(data[i : i+1])
	}
	l.look()
	l.to(10 * ms)
	if len(l.seen) != 1 || l.seen[0].Length != 3000 || !bytes.Equal(r.bytes(b)[:3000], data) {
		t.Errorf("told %+v", l.seen)
	}
	r.wantCounter(abi.CounterPayloadWrites, 3)
}
