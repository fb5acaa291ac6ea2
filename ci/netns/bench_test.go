// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"fmt"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"toebox/ci/bus/inproc"
	"toebox/ci/netns"
	"toebox/ci/rig"
	"toebox/guestdriver"
	"toebox/vdev/device"
)

// chunk is how much a program writes and reads at a time, bytes.
const chunk = 64 << 10

// BenchmarkKernel moves 1 GiB between a program on the driver, by function calls, and
// one on the host's kernel.
func BenchmarkKernel(b *testing.B) {
	const total = 1 << 30
	for name, move := range map[string]func(there *guestdriver.Conn, here *net.TCPConn) error{
		"send":    func(there *guestdriver.Conn, here *net.TCPConn) error { return through(there, here, total) },
		"receive": func(there *guestdriver.Conn, here *net.TCPConn) error { return through(here, there, total) },
	} {
		b.Run(name, func(b *testing.B) {
			there, here := connection(b)
			b.SetBytes(total)
			before := processor()
			for b.Loop() {
				if err := move(there, here); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((processor()-before)/float64(b.N)/(total/1e9), "cpu-s/GB")
		})
	}
}

// through writes total bytes to w and reads them from r.
func through(w io.Writer, r io.Reader, total int) error {
	done := make(chan error, 1)
	go func() {
		p := make([]byte, chunk)
		for left := total; left > 0; left -= len(p) {
			if _, err := w.Write(p); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	p := make([]byte, chunk)
	for left := total; left > 0; {
		n, err := r.Read(p)
		if err != nil {
			return fmt.Errorf("%d bytes are missing: %w", left, err)
		}
		left -= n
	}
	return <-done
}

// processor is the processor time of this process, the kernel's work for it
// included, in seconds.
func processor() float64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // it has no errors
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// connection is one between an adapter and a socket of the kernel.
func connection(b *testing.B) (*guestdriver.Conn, *net.TCPConn) {
	b.Helper()
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	n, err := netns.New()
	check(err)
	b.Cleanup(func() { n.Close() })
	text, err := n.Net()
	check(err)
	network, err := device.ParseNet(text)
	check(err)
	mem, irqs := inproc.NewMemory(), inproc.NewInterrupts()
	d, err := device.New(device.Config{Firmware: rig.Firmware, Net: network, DMA: mem, IRQs: irqs, Seed: 1})
	check(err)
	b.Cleanup(func() { d.Close() })
	bus, err := inproc.New(d.Function(), mem, irqs)
	check(err)
	a, err := guestdriver.Open(b.Context(), bus, guestdriver.Options{})
	check(err)
	b.Cleanup(func() { a.Close() })
	var l *net.TCPListener
	check(n.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", &net.TCPAddr{IP: n.Gateway().AsSlice()})
		return err
	}))
	defer l.Close()
	there, err := a.Dial("tcp", l.Addr().String())
	check(err)
	b.Cleanup(func() { there.Close() })
	here, err := l.AcceptTCP()
	check(err)
	b.Cleanup(func() { here.Close() })
	return there.(*guestdriver.Conn), here
}
