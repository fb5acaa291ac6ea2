// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"net/netip"
	"runtime"
	"testing"

	"toebox/vdev/abi"
)

// heap is what is in use after a collection.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// TestIdleConnections measures what an idle connection costs an adapter, in
// firmware and engine: at most 16 KiB of memory and no goroutine (CE04). Both
// ends of the connections are adapters, so each pays half.
func TestIdleConnections(t *testing.T) {
	n := 10_000
	if raceEnabled || testing.Short() {
		n = 1_000
	}
	a, b := pair(t, 8)
	listen := b.target(abi.TypeListen, abi.Target{Protocol: 6, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:80"),
		Remote: netip.MustParseAddrPort("0.0.0.0:0"), Backlog: 1 << 16})
	b.post(listen)
	if l := b.next(); l.Type != abi.TypeListenResponse || l.Aux != 0 {
		t.Fatalf("listen: %+v", l)
	}
	memory, goroutines := heap(), runtime.NumGoroutine()
	const each = 250
	for first := 0; first < n; first += each {
		var tuples []byte
		for range each {
			tuples = appendTarget(tuples, abi.Target{Protocol: 6, Count: 1, Local: netip.MustParseAddrPort("0.0.0.0:0"),
				Remote: netip.MustParseAddrPort("10.0.2.2:80"), Limit: 1 << 40})
		}
		f := a.control(abi.TypeConnect, each, tuples)
		a.post(f)
		for range each {
			if c := a.next(); c.Type != abi.TypeCompletion || c.Aux != 0 {
				t.Fatalf("completion %+v", c)
			}
			if c := b.next(); c.Type != abi.TypeArrival {
				t.Fatalf("arrival %+v", c)
			}
		}
	}
	grown := runtime.NumGoroutine() - goroutines
	size := int64(heap()-memory) / int64(2*n)
	a.wantCounter(abi.CounterConnections, uint64(n))
	t.Logf("%d idle connections: %d bytes each at an adapter, %d goroutines more", n, size, grown)
	if grown > 8 {
		t.Errorf("%d goroutines more for %d connections", grown, n)
	}
	if !raceEnabled && size > 16<<10 {
		t.Errorf("an idle connection takes %d bytes, want at most 16 KiB", size)
	}
}
