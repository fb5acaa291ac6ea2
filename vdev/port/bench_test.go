// SPDX-License-Identifier: Apache-2.0

package port

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"
)

// BenchmarkBulk moves bytes of one connection between a host socket and the
// test's adapter, both stacks and both ends of the socket in this process.
func BenchmarkBulk(b *testing.B) {
	const chunk = 256 << 10
	for _, c := range []struct {
		name   string
		toHost bool
	}{{"to host", true}, {"from host", false}} {
		b.Run(c.name, func(b *testing.B) {
			n, p := setup(b, NATConfig{})
			from, to := outboundPair(b, n, p)
			if !c.toHost {
				from, to = to, from
			}
			b.SetBytes(chunk)
			b.ReportAllocs()
			b.ResetTimer()
			go func() {
				buf := make([]byte, chunk)
				for range b.N {
					if _, err := from.Write(buf); err != nil {
						b.Error(err)
						return
					}
				}
			}()
			if _, err := io.CopyN(discard{make([]byte, chunk)}, to, int64(b.N)*chunk); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// discard throws bytes away through a buffer of its own size: io.Discard reads
// in pieces of 8 KiB.
type discard struct{ buf []byte }

func (d discard) Write(p []byte) (int, error) { return len(p), nil }

func (d discard) ReadFrom(r io.Reader) (n int64, err error) {
	for {
		k, err := r.Read(d.buf)
		n += int64(k)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

func BenchmarkPingPong(b *testing.B) {
	n, p := setup(b, NATConfig{})
	a, h := outboundPair(b, n, p)
	go io.Copy(h, h)
	buf := make([]byte, 64)
	b.ResetTimer()
	for range b.N {
		a.Write(buf)
		if _, err := io.ReadFull(a, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdle reports what an idle connection costs: the gateway's part, the
// peer's stack, and both Go sockets of the test are in the number.
func BenchmarkIdle(b *testing.B) {
	const count = 2000
	n, p := setup(b, NATConfig{})
	l := hostListen(b, "127.0.0.1:0")
	to := netip.AddrPortFrom(n.gateway, portOf(l.Addr()))
	var m0, m1 runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m0)
	var keep []net.Conn
	for range b.N {
		for range count {
			c, err := p.dial(deadline(b), to)
			if err != nil {
				b.Fatal(err)
			}
			h, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			keep = append(keep, c, h)
		}
		eventually(b, "all are open", func() bool { return n.Stats().TCPOpen >= count })
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m1)
		per := float64(m1.HeapAlloc+m1.StackInuse) - float64(m0.HeapAlloc+m0.StackInuse)
		b.ReportMetric(per/float64(len(keep)/2), "B/conn")
		for _, c := range keep {
			c.Close()
		}
		keep = nil
		eventually(b, "all are gone", func() bool { return n.Stats().TCPOpen == 0 })
	}
}
