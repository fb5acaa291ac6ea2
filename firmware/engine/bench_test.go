// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"errors"
	"runtime"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// BenchmarkBulk moves 64 KiB a time over one connection; both engines and the
// wire are in the process.
func BenchmarkBulk(b *testing.B) {
	x, y := twoEngines(b, enginetest.PipeOptions{}, nil)
	client, server := connected(b, x, y)
	const chunk = 64 << 10
	src, dst := make([]byte, chunk), make([]byte, chunk)
	done := make(chan struct{})
	total := b.N * chunk
	b.SetBytes(chunk)
	b.ReportAllocs()
	b.ResetTimer()
	go func() {
		defer close(done)
		got := 0
		server.ev.until(b, "bytes", func() bool {
			for got < total {
				n, err := server.Read(chunk, func(p []byte) int { return copy(dst, p) })
				got += n
				if err != nil {
					return !errors.Is(err, engine.ErrWouldBlock)
				}
			}
			return true
		})
	}()
	fill := func(p []byte) error { copy(p, src); return nil }
	sent := 0
	client.ev.until(b, "room", func() bool {
		for sent < total {
			n, err := client.Write(min(chunk, total-sent), fill)
			sent += n
			if err != nil {
				return !errors.Is(err, engine.ErrWouldBlock)
			}
		}
		return true
	})
	<-done
}

// BenchmarkPingPong sends 64 bytes there and back.
func BenchmarkPingPong(b *testing.B) {
	x, y := twoEngines(b, enginetest.PipeOptions{}, nil)
	client, server := connected(b, x, y)
	msg := make([]byte, 64)
	fill := func(p []byte) error { copy(p, msg); return nil }
	take := func(p []byte) int { return copy(msg, p) }
	read := func(p peer) {
		got := 0
		p.ev.until(b, "bytes", func() bool {
			n, err := p.Read(64-got, take)
			got += n
			if err != nil && !errors.Is(err, engine.ErrWouldBlock) {
				b.Error(err)
				return true
			}
			return got == 64
		})
	}
	b.ReportAllocs()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range b.N {
			read(server)
			_, _ = server.Write(64, fill)
		}
	}()
	b.ResetTimer()
	for range b.N {
		_, _ = client.Write(64, fill)
		read(client)
	}
	<-done
}

// BenchmarkConnect opens and aborts connections one after the other.
func BenchmarkConnect(b *testing.B) {
	x, y := twoEngines(b, enginetest.PipeOptions{}, nil)
	l := listen(b, x, false, 80, 128)
	b.ReportAllocs()
	for b.Loop() {
		c := connect(b, y, false, addrPort(x.v4, 80))
		s := accept(b, l)
		c.Abort()
		s.Abort()
	}
}

// BenchmarkIdle reports the memory of an idle connection, both ends.
func BenchmarkIdle(b *testing.B) {
	x, y := twoEngines(b, enginetest.PipeOptions{}, nil)
	l := listen(b, x, false, 80, 128)
	var keep []peer
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for b.Loop() {
		keep = append(keep, connect(b, y, false, addrPort(x.v4, 80)), accept(b, l))
	}
	b.ReportMetric(float64(heap()-before)/float64(len(keep)), "B/endpoint")
	runtime.KeepAlive(keep)
}

// BenchmarkInfo is what an owner pays who asks after each event.
func BenchmarkInfo(b *testing.B) {
	x, y := twoEngines(b, enginetest.PipeOptions{}, nil)
	client, _ := connected(b, x, y)
	b.ReportAllocs()
	for b.Loop() {
		_ = client.Info()
	}
}
