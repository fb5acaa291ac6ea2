// SPDX-License-Identifier: Apache-2.0

package port

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"toebox/firmware/engine"
)

// TapControl is what tap devices are made by.
const TapControl = "/dev/net/tun"

// How a tap device is opened and used.
const (
	tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	// tapOffloads is what the kernel leaves to the adapter: checksums, and segments that
	// stand for many.
	tapOffloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	tapShortest = vnetHeader + header.EthernetMinimumSize
	// tapAround are the bytes around the payload; the MTU leaves out an 802.1Q tag.
	tapAround = tapShortest + 4
	// tapBuffer takes what one read of several frames brings, bytes.
	tapBuffer = 256 << 10
	// tapPieces is how many pieces a frame may have to be written as it is (IOV_MAX,
	// less the header).
	tapPieces = 1024 - 1
)

// TapStats are the totals of a [Tap].
type TapStats struct {
	FramesFromAdapter  uint64 `json:"frames_from_adapter"`
	FramesToAdapter    uint64 `json:"frames_to_adapter"`
	DroppedRefused     uint64 `json:"dropped_refused"`      // the kernel took none: the interface is down, or gone
	DroppedLong        uint64 `json:"dropped_long"`         // longer than a frame may be, either way
	DroppedShort       uint64 `json:"dropped_short"`        // no whole Ethernet header
	DroppedOffload     uint64 `json:"dropped_offload"`      // the kernel left work to do that nobody asked for, or that makes no sense
	DroppedNotAttached uint64 `json:"dropped_not_attached"` // nobody receives
}

// Tap is a port on a tap device: the host's kernel is at the other end of the
// wire.
type Tap struct {
	file *os.File
	raw  syscall.RawConn
	mtu  int
	tso  bool          // segments that stand for many, and checksums to be done, go both ways
	end  chan struct{} // closed when the port ends
	wg   sync.WaitGroup
	outs sync.Pool // of *tapOut

	fromAdapter, toAdapter, refused, long, short, offload, notAttached atomic.Uint64

	receiveMu sync.Mutex // held while receive runs
	receive   func([]engine.Frame)

	mu  sync.Mutex
	err error // why the port ended
}

var _ engine.Port = (*Tap)(nil)

// OpenTap opens the tap device name of the calling thread's network namespace.
// One that does not exist is made, without an address and down, and lasts as
// long as the file.
func OpenTap(name string) (*os.File, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil || name == "" {
		return nil, fmt.Errorf("port: tap: %q is no name of an interface", name)
	}
	fd, err := unix.Open(TapControl, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("port: tap: open %s: %w", TapControl, err)
	}
	ifr.SetUint16(tapFlags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("port: tap: %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// NewTap makes a port of a file that OpenTap opened, here or in a parent. It
// owns f from here.
func NewTap(f *os.File, mtu int) (*Tap, error) {
	defer f.Close()
	c, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("port: tap: %w", err)
	}
	// A duplicate, since what became of f's blocking mode on its way is unknown.
	fd := -1
	if e := c.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("port: tap: %w", err)
	}
	tso, err := setUpTap(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("port: tap: %s: %w", f.Name(), err)
	}
	return newTap(fd, f.Name(), mtu, tso)
}

// setUpTap checks that fd is a tap device and says how frames look: with tso, some
// stand for many.
func setUpTap(fd int) (tso bool, err error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return false, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return false, err
	}
	if ifr.Uint16()&tapFlags != tapFlags {
		return false, errors.New("no tap device with IFF_NO_PI and IFF_VNET_HDR")
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHeader); err != nil {
		return false, err
	}
	tso, err = offload(func(bits int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, bits) })
	if err != nil {
		return false, err
	}
	return tso, unix.SetNonblock(fd, true)
}

// offload asks the kernel to leave work to the adapter, by set, or else none: it then
// sends what a wire would carry.
func offload(set func(bits int) error) (tso bool, err error) {
	if set(tapOffloads) == nil {
		return true, nil
	}
	return false, set(0)
}

// newTap makes a port of a descriptor that reads and writes one frame at a time,
// without waiting.
func newTap(fd int, name string, mtu int, tso bool) (*Tap, error) {
	if mtu < header.IPv6MinimumMTU || mtu > maxGSO {
		unix.Close(fd)
		return nil, fmt.Errorf("port: tap: mtu %d: not in [%d, %d]", mtu, header.IPv6MinimumMTU, maxGSO)
	}
	file := os.NewFile(uintptr(fd), name)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("port: tap: %w", err)
	}
	t := &Tap{file: file, raw: raw, mtu: mtu, tso: tso, end: make(chan struct{}), outs: sync.Pool{New: func() any { return new(tapOut) }}}
	t.wg.Add(1)
	go t.read()
	return t, nil
}

// MTU implements engine.Port.
func (t *Tap) MTU() int { return t.mtu }

// Attach implements engine.Port.
func (t *Tap) Attach(receive func([]engine.Frame)) {
	t.receiveMu.Lock()
	defer t.receiveMu.Unlock()
	t.receive = receive
}

// Transmit implements engine.Port. It never waits: the kernel takes a frame or
// refuses it.
func (t *Tap) Transmit(frames []engine.Frame) int {
	taken := 0
	err := t.raw.Write(func(fd uintptr) bool {
		for i := range frames {
			if t.transmitOne(int(fd), &frames[i]) {
				taken++
			}
		}
		return true
	})
	if err != nil {
		t.refused.Add(uint64(len(frames)))
	}
	return taken
}

func (t *Tap) transmitOne(fd int, f *engine.Frame) bool {
	switch n := f.Len(); {
	case n > streamFrame:
		t.long.Add(1)
		return false
	case n < header.EthernetMinimumSize:
		t.short.Add(1)
		return false
	}
	o := t.outs.Get().(*tapOut)
	defer t.outs.Put(o)
	if t.tso && len(f.Data) <= tapPieces {
		putVnet(o.head[:], f)
		return t.write(fd, o, f.Data...)
	}
	clear(o.head[:]) // checksums will be complete, and nothing is to be cut
	for _, b := range split(f) {
		if !t.write(fd, o, b) {
			return false
		}
	}
	return true
}

// tapOut is what the write of one frame needs.
type tapOut struct {
	head   [vnetHeader]byte
	pieces [][]byte
}

// write sends one frame behind the header in o.
func (t *Tap) write(fd int, o *tapOut, frame ...[]byte) bool {
	o.pieces = append(append(o.pieces[:0], o.head[:]), frame...)
	_, err := unix.Writev(fd, o.pieces)
	clear(o.pieces) // they belong to the adapter
	if err != nil {
		t.refused.Add(1)
		return false
	}
	t.fromAdapter.Add(1)
	return true
}

// Stats returns the totals so far.
func (t *Tap) Stats() TapStats {
	return TapStats{
		FramesFromAdapter: t.fromAdapter.Load(), FramesToAdapter: t.toAdapter.Load(),
		DroppedRefused: t.refused.Load(), DroppedLong: t.long.Load(), DroppedShort: t.short.Load(),
		DroppedOffload: t.offload.Load(), DroppedNotAttached: t.notAttached.Load(),
	}
}

// Done is closed when the port has ended; Err then says why.
func (t *Tap) Done() <-chan struct{} { return t.end }

// Err is what ended the port: net.ErrClosed after Close, else what the kernel
// said, for example when the interface was removed; nil while it runs.
func (t *Tap) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Close implements engine.Port.
func (t *Tap) Close() error {
	t.fail(net.ErrClosed)
	t.wg.Wait()
	return nil
}

// fail ends the port, once.
func (t *Tap) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return
	}
	t.err = err
	close(t.end)
	_ = t.file.Close() // nothing is buffered
}

// read hands frames to the adapter, all that wait in one call, at most a batch, or a
// buffer's worth.
func (t *Tap) read() {
	defer t.wg.Done()
	// A read that fills its part of the buffer was cut.
	size := tapAround + t.mtu + 1
	if t.tso {
		size = tapAround + maxGSO + 1
	}
	buf := make([]byte, max(tapBuffer, size))
	var frames [frameBatch]engine.Frame
	for {
		n, used := 0, 0
		var failed error
		err := t.raw.Read(func(fd uintptr) bool {
			for range frames {
				if used+size > len(buf) {
					return true
				}
				b := buf[used : used+size]
				k, err := unix.Read(int(fd), b)
				switch {
				case errors.Is(err, unix.EINTR):
					continue
				case errors.Is(err, unix.EAGAIN):
					return n > 0
				case err == nil && k == 0:
					err = io.EOF
				}
				if err != nil {
					failed = err
					return true
				}
				if t.accept(b[:k], size, &frames[n]) {
					n++
					used += k
				}
			}
			return true
		})
		if n > 0 {
			t.deliver(frames[:n])
		}
		if err == nil {
			err = failed
		}
		if err != nil {
			t.fail(fmt.Errorf("port: tap: %w", err))
			return
		}
	}
}

// accept makes f of what one read brought, or counts why not.
func (t *Tap) accept(b []byte, size int, f *engine.Frame) bool {
	if len(b) < tapShortest {
		t.short.Add(1)
		return false
	}
	*f = engine.Frame{Data: append(f.Data[:0], b[vnetHeader:])}
	sound := readVnet(b, b[vnetHeader:], f)
	work := f.NeedsChecksum || b[vnetGSOType] != vnetGSONone
	switch {
	case len(b) >= size:
		t.long.Add(1)
		return false
	case !sound || work && !t.tso:
		t.offload.Add(1)
		return false
	case f.GSO == engine.GSONone && len(b) > tapAround+t.mtu:
		t.long.Add(1)
		return false
	}
	return true
}

func (t *Tap) deliver(frames []engine.Frame) {
	t.receiveMu.Lock()
	defer t.receiveMu.Unlock()
	if t.receive == nil {
		t.notAttached.Add(uint64(len(frames)))
		return
	}
	t.toAdapter.Add(uint64(len(frames)))
	t.receive(frames)
}
