// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"toebox/vfio-user/vfiousertest"
)

const (
	rounds      = 7    // interleaved, of which the median counts
	warmUp      = 500  // round trips
	perRound    = 5000 // round trips
	readRequest = 32   // bytes of a region read
	readReply   = 36   // bytes of the reply with 4 bytes of data
)

// blocking returns the descriptor of a socket of its own for c, that blocks: it
// is for threads that wait in system calls.
func blocking(t testing.TB, c *net.UnixConn) int {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return int(f.Fd()) // Fd makes it block
}

func transferAll(trap uintptr, fd int, p []byte) bool {
	for len(p) > 0 {
		n, err := ioOnce(trap, fd, p)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return false
		}
		p = p[n:]
	}
	return true
}

// pingPong makes n exchanges of a request and a reply from this thread.
func pingPong(t testing.TB, fd, n int, request, reply []byte) time.Duration {
	t.Helper()
	start := time.Now()
	for range n {
		if !transferAll(syscall.SYS_WRITE, fd, request) || !transferAll(syscall.SYS_READ, fd, reply) {
			t.Fatal("the other side has gone")
		}
	}
	return time.Since(start)
}

// echo answers requests with replies from a locked thread, until the socket
// ends: the least that a server can do.
func echo(t testing.TB) int {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		request, reply := make([]byte, readRequest), make([]byte, readReply)
		for transferAll(syscall.SYS_READ, fds[1], request) && transferAll(syscall.SYS_WRITE, fds[1], reply) {
		}
	}()
	t.Cleanup(func() {
		syscall.Shutdown(fds[0], syscall.SHUT_RDWR)
		<-done
		syscall.Close(fds[0])
		syscall.Close(fds[1])
	})
	return fds[0]
}

// BenchmarkRoundTrip compares a region read with the same bytes going there and
// back between two threads, in rounds that take turns, and reports the medians
// and their ratio. Both wait in system calls on this side. Run it with both
// sides on one processor as
//
//	taskset -c 0 go test -cpu 2 -run '^$' -bench RoundTrip -benchtime 1x ./vfio-user
func BenchmarkRoundTrip(b *testing.B) {
	for _, bb := range []struct {
		name string
		spin time.Duration
	}{{"spin=default", 0}, {"spin=never", -1}} {
		b.Run(bb.name, func(b *testing.B) {
			cfg := vfiousertest.Config()
			cfg.Spin = bb.spin
			_, conn := vfiousertest.Serve(b, quiet{}, cfg)
			vfiousertest.NewPeer(b, conn).Version()
			ours, bare := blocking(b, conn), echo(b)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			request, reply := region(1, 9, 0, 0, 4).Bytes(), make([]byte, readReply)
			if len(request) != readRequest {
				b.Fatalf("a request of %d bytes", len(request))
			}
			pingPong(b, ours, warmUp, request, reply)
			pingPong(b, bare, warmUp, request, reply)
			for b.Loop() {
				var o, p []float64
				for range rounds {
					o = append(o, float64(pingPong(b, ours, perRound, request, reply).Nanoseconds())/perRound)
					p = append(p, float64(pingPong(b, bare, perRound, request, reply).Nanoseconds())/perRound)
				}
				report(b, "bare", p, "read", o)
			}
		})
	}
}
