// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// fake is a server without a process.
type fake struct {
	dial  func() (*net.UnixConn, error)
	end   func()        // takes the connection away
	stuck chan struct{} // its process lives until this is closed; nil: not
	done  chan struct{}
	once  sync.Once

	asked chan struct{} // gets a value when the keeper waits in Stop; nil: nobody asks

	served chan struct{} // closed when nothing is served any more; nil: never was
}

func (f *fake) Dial(context.Context) (*net.UnixConn, error) { return f.dial() }
func (f *fake) Done() <-chan struct{}                       { return f.done }
func (f *fake) Err() error                                  { return errors.New("killed") }
func (f *fake) PID() int                                    { return 0 }
func (f *fake) Trace() []byte                               { return []byte("a trace") }

// Stop implements Process.
func (f *fake) Stop(time.Duration) {
	f.kill()
	select {
	case f.asked <- struct{}{}:
	default:
	}
	<-f.done
}

// kill ends the process.
func (f *fake) kill() {
	f.once.Do(func() {
		f.end()
		go func() {
			if f.stuck != nil {
				<-f.stuck
			}
			if f.served != nil {
				<-f.served
			}
			close(f.done)
		}()
	})
}

// fakes makes servers.
type fakes struct {
	t     testing.TB
	start chan func() (*fake, error) // what the next starts do
	made  chan *fake
}

func newFakes(t testing.TB) *fakes {
	return &fakes{t: t, start: make(chan func() (*fake, error), 16), made: make(chan *fake, 16)}
}

func (s *fakes) Start(ctx context.Context, _ uint32) (Process, error) {
	select {
	case f := <-s.start:
		p, err := f()
		if err != nil {
			return nil, err
		}
		s.made <- p
		return p, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// config is that of a keeper which the test waits for.
func (s *fakes) config() Config {
	return Config{Start: s.Start, BackOff: time.Millisecond, MaxBackOff: time.Millisecond, Patience: patience, StartTimeout: patience}
}

// peer has the next server be played by literal bytes.
func (s *fakes) peer() *vfiousertest.Peer {
	// Not closed by the end of the test, but by that of the keeper.
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	var c [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			s.t.Fatal(err)
		}
		c[i] = conn.(*net.UnixConn)
	}
	s.start <- func() (*fake, error) {
		return &fake{dial: func() (*net.UnixConn, error) { return c[0], nil }, end: func() { c[1].Close() }, done: make(chan struct{})}, nil
	}
	return vfiousertest.NewPeer(s.t, c[1])
}

// device has the next server serve dev, and returns it.
func (s *fakes) device(dev vfiouser.Device, cfg vfiouser.Config) *vfiouser.Server {
	return s.stuck(dev, cfg, nil)
}

func (s *fakes) stuck(dev vfiouser.Device, cfg vfiouser.Config, stuck chan struct{}) *vfiouser.Server {
	srv, err := vfiouser.NewServer(dev, cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.start <- func() (*fake, error) {
		dir, err := os.MkdirTemp("", "keeper")
		if err != nil {
			return nil, err
		}
		addr := &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"}
		l, err := net.ListenUnix("unix", addr)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan struct{})
		go func() {
			defer close(served)
			srv.Serve(ctx, l)
			l.Close()
			os.RemoveAll(dir)
		}()
		return &fake{
			dial: func() (*net.UnixConn, error) { return net.DialUnix("unix", nil, addr) },
			end:  cancel, stuck: stuck, served: served, done: make(chan struct{}), asked: make(chan struct{}, 1),
		}, nil
	}
	return srv
}

// space is a configuration space with every register that is put back: PM at
// 0x40, MSI at 0x50, PCIe at 0x70, MSI-X at 0xb0, AF at 0xc0.
func space() []byte {
	b := make([]byte, 4096)
	copy(b, []byte{0xef, 0xbe, 0xad, 0xde, 0, 0, 0x10, 0}) // ids, Command, Status: capabilities
	b[0x10], b[0x34], b[0x3d] = 0x04, 0x40, 1
	copy(b[0x40:], []byte{0x01, 0x50, 0x03, 0x00, 0x08, 0x00})
	copy(b[0x50:], []byte{0x05, 0x70, 0x80, 0x00})
	copy(b[0x70:], []byte{0x10, 0xb0, 0x02, 0x00, 0, 0, 0, 0x10, 0x10, 0x28})
	copy(b[0xb0:], []byte{0x11, 0xc0, 0x1f, 0x00})
	copy(b[0xc0:], []byte{0x13, 0x00, 0x06, 0x03})
	return b
}

// plain is a device of memory with that configuration space.
func plain() (*vfiousertest.Device, vfiouser.Config) {
	cfg := vfiousertest.Config()
	d := vfiousertest.NewDevice(cfg)
	d.Set(vfiouser.RegionConfig, 0, space())
	return d, cfg
}
