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

// The virtio_net_hdr in front of each frame of a tap device (Virtual I/O Device
// 1.2, section 5.1.6): flags, gso_type, then four fields of 16 bits that say
// nothing while both are 0.
const (
	tapHeader        = 10   // bytes, without num_buffers
	tapHeaderFlags   = 0    // offset of flags
	tapHeaderGSO     = 1    // offset of gso_type
	tapNeedsChecksum = 0x01 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	tapChecksumValid = 0x02 // VIRTIO_NET_HDR_F_DATA_VALID
)

// TapControl is what tap devices are made by.
const TapControl = "/dev/net/tun"

// How a tap device is opened and used.
const (
	tapFlags    = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	tapOffloads = 0 // TUN_F_*: the kernel sends what a wire would carry
	tapShortest = tapHeader + header.EthernetMinimumSize
	// tapAround are the bytes around the payload; the MTU leaves out an 802.1Q tag.
	tapAround = tapShortest + 4
)

// TapStats are the totals of a [Tap].
type TapStats struct {
	FramesFromAdapter  uint64 `json:"frames_from_adapter"`
	FramesToAdapter    uint64 `json:"frames_to_adapter"`
	DroppedRefused     uint64 `json:"dropped_refused"`      // the kernel took none: the interface is down, or gone
	DroppedLong        uint64 `json:"dropped_long"`         // longer than a frame may be, either way
	DroppedShort       uint64 `json:"dropped_short"`        // no whole Ethernet header
	DroppedOffload     uint64 `json:"dropped_offload"`      // the kernel left work to do that nobody asked for
	DroppedNotAttached uint64 `json:"dropped_not_attached"` // nobody receives
}

// Tap is a port on a tap device: the host's kernel is at the other end of the
// wire.
type Tap struct {
	file *os.File
	raw  syscall.RawConn
	mtu  int
	end  chan struct{} // closed when the port ends
	wg   sync.WaitGroup

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
	if err := setUpTap(fd); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("port: tap: %s: %w", f.Name(), err)
	}
	return newTap(fd, f.Name(), mtu)
}

// setUpTap checks that fd is a tap device and says how frames look.
func setUpTap(fd int) error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return err
	}
	if ifr.Uint16()&tapFlags != tapFlags {
		return errors.New("no tap device with IFF_NO_PI and IFF_VNET_HDR")
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, tapHeader); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tapOffloads); err != nil {
		return err
	}
	return unix.SetNonblock(fd, true)
}

// newTap makes a port of a descriptor that reads and writes one frame at a time,
// without waiting.
func newTap(fd int, name string, mtu int) (*Tap, error) {
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
	t := &Tap{file: file, raw: raw, mtu: mtu, end: make(chan struct{})}
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
	var head [tapHeader]byte // checksums are complete, nothing is to be cut
	for _, b := range split(f) {
		if _, err := unix.Writev(fd, [][]byte{head[:], b}); err != nil {
			t.refused.Add(1)
			return false
		}
		t.fromAdapter.Add(1)
	}
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

// read hands frames to the adapter, all that wait in one call, at most a batch.
func (t *Tap) read() {
	defer t.wg.Done()
	// A read that fills its part of the buffer was cut.
	size := tapAround + t.mtu + 1
	buf := make([]byte, frameBatch*size)
	var frames [frameBatch]engine.Frame
	for {
		n := 0
		var failed error
		err := t.raw.Read(func(fd uintptr) bool {
			for range frames {
				b := buf[n*size : (n+1)*size]
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
	switch {
	case len(b) < tapShortest:
		t.short.Add(1)
		return false
	case len(b) >= size:
		t.long.Add(1)
		return false
	case b[tapHeaderFlags]&tapNeedsChecksum != 0 || b[tapHeaderGSO] != 0:
		t.offload.Add(1)
		return false
	}
	*f = engine.Frame{Data: append(f.Data[:0], b[tapHeader:]), ChecksumValid: b[tapHeaderFlags]&tapChecksumValid != 0}
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
