// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"

	"toebox/firmware"
	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
	"toebox/firmware/firmwaretest"
	"toebox/vdev/abi"
)

// flatEngine has connections that acknowledge at once and receive as many bytes
// as the test says, without a network and without an allocation.
type flatEngine struct {
	engine.Engine
	last *flat
}

func (e *flatEngine) Open(p engine.Protocol, v6 bool, s engine.Sink) (engine.Endpoint, error) {
	ep, err := e.Engine.Open(p, v6, s)
	e.last = &flat{Endpoint: ep, sink: s}
	return e.last, err
}

type flat struct {
	engine.Endpoint
	sink   engine.Sink
	buf    [64 << 10]byte
	queued atomic.Uint64
	unread atomic.Int64
	read   atomic.Uint64
}

func (f *flat) Connect(netip.AddrPort) error {
	f.sink.Notify(engine.EventConnected)
	return nil
}

func (f *flat) ConnectResult() error { return nil }

func (f *flat) Write(n int, fill func([]byte) error) (int, error) {
	n = min(n, len(f.buf))
	if err := fill(f.buf[:n]); err != nil {
		return 0, err
	}
	f.queued.Add(uint64(n))
	f.sink.Notify(engine.EventAcked)
	return n, nil
}

func (f *flat) Info() engine.Info {
	n := f.queued.Load()
	read := f.read.Load()
	return engine.Info{Queued: n, Acked: n, Received: read + uint64(f.unread.Load()), Delivered: read}
}

func (f *flat) Read(limit int, take func([]byte) int) (int, error) {
	n := min(limit, int(f.unread.Load()), len(f.buf))
	if n == 0 {
		return 0, engine.ErrWouldBlock
	}
	n = take(f.buf[:n])
	f.read.Add(uint64(n))
	f.unread.Add(-int64(n))
	return n, nil
}

// Peek offers what there is in pieces, as segments would have brought it.
func (f *flat) Peek(limit int, take func([]byte) int) (int, error) {
	left := min(limit, int(f.unread.Load()), len(f.buf))
	if left == 0 {
		return 0, engine.ErrWouldBlock
	}
	n := 0
	for left > 0 {
		offer := f.buf[:min(left, 1000)]
		k := take(offer)
		n, left = n+k, left-k
		if k < len(offer) {
			break
		}
	}
	return n, nil
}

func (f *flat) Err() error { return nil }

// flatRig has one connection over a flatEngine, and a driver that does not
// allocate.
func flatRig(t testing.TB, log2 uint8, attrs ...uint64) (*firmware.Firmware, *firmwaretest.Host, uint64, *flat) {
	e := &flatEngine{Engine: enginetest.NewEngine()}
	chip := firmwaretest.NewChip(8<<20, 1<<20)
	fw := firmware.New(firmware.Config{Chip: chip, Engine: e, Generation: 1, MTU: 1500})
	t.Cleanup(func() {
		if err := fw.Close(); err != nil {
			t.Error(err)
		}
	})
	fw.Run()
	h := firmwaretest.NewHost(fw, chip, 0, log2)
	if s := h.Create(); s != abi.StatusOK {
		t.Fatal(s)
	}
	buf, n := scalars(attrs...)
	buf = appendTarget(buf, connectTarget())
	base := chip.Alloc(len(buf), 8)
	copy(chip.Bytes(base, len(buf)), buf)
	if err := h.Post(abi.Fields{Type: abi.TypeConnect, Tag: h.Tag(), Aux: uint16(n + 1), Base: base, Length: uint32(len(buf))}); err != nil {
		t.Fatal(err)
	}
	f, err := h.Next()
	if err != nil || f.Aux != 0 {
		t.Fatal(f, err)
	}
	return fw, h, f.Conn, e.last
}

// rounds posts n requests of a kind and takes their responses, without waiting
// otherwise than by looking.
func rounds(t testing.TB, h *firmwaretest.Host, f abi.Fields, n int) {
	done := 0
	for posted := 0; done < n; {
		old, before := h.Index(), done
		for posted < n && h.Room() {
			f.Tag = h.Tag()
			h.Publish(f)
			posted++
		}
		h.Ring(old)
		for {
			got, ok := h.Take()
			if !ok {
				break
			}
			if got.Aux != 0 || got.Flags&^abi.FlagCombined != abi.FlagFinal {
				t.Fatalf("response %+v", got)
			}
			done++
			if got.Flags&abi.FlagCombined != 0 {
				done += int(got.Length/f.Length) - 1
			}
		}
		if done == before {
			runtime.Gosched()
		}
	}
}

// TestNoAllocations moves payload both ways in steady state, under each policy.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Log("the race detector allocates")
		return
	}
	for _, c := range []struct {
		name  string
		attrs []uint64
	}{
		{"the defaults", nil},
		{"by bytes, combined", []uint64{gatherThreshold, 0, notifyBytes, 16 << 10, combine, 1}},
		{"by bytes, gathered", []uint64{notifyBytes, 16 << 10}},
		{"by all that sets itself", []uint64{gatherThreshold, 0, notifyDynamic, 15, notifyBytes, 4096}},
		{"history, best match", []uint64{0x0232, 2, 0x0238, 1 << 16}},
		{"sends by count", []uint64{0x0220, 31, 0x0221, 4}},
		{"sends by what is held", []uint64{0x0220, 31, 0x0224, 1, 0x0223, 1000}},
		{"copies of sends", []uint64{0x0229, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, h, id, ep := flatRig(t, 6, c.attrs...)
			send := abi.Fields{Type: abi.TypeBufferSend, Conn: id, Base: h.Chip.Alloc(4096, 64), Length: 4096}
			bulk := abi.Fields{Type: abi.TypeBufferAvailable, Base: h.Chip.Alloc(4096, 64), Length: 4096}
			own := bulk
			own.Conn, own.Flags = id, abi.FlagOnce
			for _, k := range []struct {
				name string
				f    abi.Fields
			}{{"send", send}, {"bulk", bulk}, {"own", own}} {
				const n = 2000
				run := func() {
					if k.f.Type == abi.TypeBufferAvailable {
						ep.unread.Add(n * 4096)
						ep.sink.Notify(engine.EventReadable)
					}
					rounds(t, h, k.f, n)
				}
				run()
				// A slice grows now and then; one per descriptor is what must not be.
				if per := testing.AllocsPerRun(5, run) / n; per > 0.01 {
					t.Errorf("%s: %v allocations per descriptor", k.name, per)
				}
			}
		})
	}
}

// BenchmarkSend measures sends of a size through one queue.
func BenchmarkSend(b *testing.B) {
	for _, size := range []uint32{64, 4096, 65536} {
		b.Run(sizeName(size), func(b *testing.B) {
			_, h, id, _ := flatRig(b, 8)
			f := abi.Fields{Type: abi.TypeBufferSend, Conn: id, Base: h.Chip.Alloc(int(size), 64), Length: size}
			b.SetBytes(64 * int64(size))
			b.ReportAllocs()
			for b.Loop() {
				rounds(b, h, f, 64)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/descriptor")
		})
	}
}

// BenchmarkReceive measures how buffers of a size are filled through one queue: those of a
// connection, and those of the pool of all.
func BenchmarkReceive(b *testing.B) {
	for _, pool := range []string{"own", "bulk"} {
		for _, size := range []uint32{64, 4096, 65536} {
			b.Run(pool+"/"+sizeName(size), func(b *testing.B) {
				_, h, id, ep := flatRig(b, 8)
				f := abi.Fields{Type: abi.TypeBufferAvailable, Base: h.Chip.Alloc(int(size), 64), Length: size, Flags: abi.FlagOnce}
				if pool == "own" {
					f.Conn = id
				}
				b.SetBytes(64 * int64(size))
				b.ReportAllocs()
				for b.Loop() {
					ep.unread.Add(64 * int64(size))
					ep.sink.Notify(engine.EventReadable)
					rounds(b, h, f, 64)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/descriptor")
			})
		}
	}
}

func sizeName(n uint32) string {
	if n < 1024 {
		return "64B"
	}
	return map[uint32]string{4096: "4KiB", 65536: "64KiB"}[n]
}
