// SPDX-License-Identifier: Apache-2.0

package uio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"toebox/guestdriver"
	"toebox/guestdriver/internal/pool"
	"toebox/guestdriver/internal/sysfs"
	"toebox/guestdriver/mmio"
)

// errClosed is what calls after Close return.
var errClosed = net.ErrClosed

const (
	numBARs    = 6
	maxBAR     = 1 << 30 // bytes of a BAR that is mapped
	configSize = 4096    // bytes

	// Of PCI configuration space.
	regCommand           = 0x04
	commandMaster        = 1 << 2
	commandINTxDisable   = 1 << 10
	commandDisableInByte = commandINTxDisable >> 8 // of the byte at regCommand+1
)

// Options choose how a function is driven.
type Options struct {
	// Poll has the cause registers looked at instead of using the interrupt.
	Poll bool
}

// places are where the kernel's files are.
type places struct {
	sysfs   sysfs.Dir
	dev     string
	pagemap string
}

// Bus is an adapter reached through UIO. It implements [guestdriver.Bus].
type Bus struct {
	bdf    string
	dir    string // of the function in sysfs
	bars   [numBARs][]byte
	node   int // /dev/uioN; -1 when interrupts have its file
	config *os.File
	poll   bool // there is no interrupt, or none is wanted

	// cfg makes what reads and writes Interrupt Disable one step.
	cfg sync.Mutex

	mu     sync.Mutex // after cfg
	closed bool
	memory pool.Pool
	pages  *hugePages
	line   *line // from EnableVectors on
}

var _ guestdriver.Bus = (*Bus)(nil)

// Open opens a function that is bound to uio_pci_generic and resets it. No other
// program may use it: the kernel does not keep two apart.
func Open(bdf string, o Options) (*Bus, error) {
	return open(places{sysfs: sysfs.Mounted, dev: "/dev", pagemap: "/proc/self/pagemap"}, bdf, o)
}

func open(at places, bdf string, o Options) (*Bus, error) {
	if err := sysfs.Check(bdf); err != nil {
		return nil, fmt.Errorf("uio: %w", err)
	}
	b := &Bus{bdf: bdf, dir: at.sysfs.Function(bdf), node: -1, poll: o.Poll, pages: newHugePages(at.pagemap)}
	if err := b.open(at.dev); err != nil {
		b.Close()
		return nil, fmt.Errorf("uio: open %s: %w", bdf, err)
	}
	return b, nil
}

func (b *Bus) open(dev string) error {
	if _, err := os.Stat(b.dir); err != nil {
		return err
	}
	name, err := node(b.dir)
	if err != nil {
		return err
	}
	path := filepath.Join(dev, name)
	if b.node, err = unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// uio_read of a device without an interrupt is EIO (drivers/uio/uio.c).
	var count [4]byte
	if _, err := unix.Read(b.node, count[:]); err == unix.EIO {
		b.poll = true
	}
	// Whoever had it before may have died with queues running.
	if err := b.resetFunction(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reset: %w", err)
	}
	if b.config, err = os.OpenFile(filepath.Join(b.dir, "config"), os.O_RDWR, 0); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(b.dir, "resource"))
	if err != nil {
		return err
	}
	sizes, err := memoryBARs(string(text))
	if err != nil {
		return err
	}
	for i, n := range sizes {
		if n == 0 || n > maxBAR {
			continue
		}
		if b.bars[i], err = mapFile(filepath.Join(b.dir, fmt.Sprint("resource", i)), int(n)); err != nil {
			return fmt.Errorf("map BAR %d: %w", i, err)
		}
	}
	return nil
}

func mapFile(path string, n int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// Name implements guestdriver.Bus.
func (b *Bus) Name() string { return "uio " + b.bdf }

// ReadConfig implements guestdriver.Bus.
func (b *Bus) ReadConfig(offset, size int) (uint32, error) {
	if err := b.checkConfig(offset, size); err != nil {
		return 0, err
	}
	var buf [4]byte
	if _, err := b.config.ReadAt(buf[:size], int64(offset)); err != nil {
		return 0, b.configErr("read", offset, err)
	}
	return binary.LittleEndian.Uint32(buf[:]), nil
}

// WriteConfig implements guestdriver.Bus. While vectors are enabled it leaves
// Interrupt Disable clear.
func (b *Bus) WriteConfig(offset, size int, v uint32) error {
	if err := b.checkConfig(offset, size); err != nil {
		return err
	}
	var buf [4]byte
	binary.LittleEndian.PutUint32(buf[:], v)
	b.cfg.Lock()
	defer b.cfg.Unlock()
	if at := regCommand + 1 - offset; at >= 0 && at < size && b.enabled() {
		// What the caller read may be older than the last interrupt. One that
		// is masked and not seen yet comes once more.
		buf[at] &^= commandDisableInByte
		if b.poll {
			buf[at] |= commandDisableInByte
		}
	}
	if _, err := b.config.WriteAt(buf[:size], int64(offset)); err != nil {
		return b.configErr("write", offset, err)
	}
	return nil
}

func (b *Bus) checkConfig(offset, size int) error {
	if offset < 0 || size != 1 && size != 2 && size != 4 || offset%size != 0 || offset+size > configSize {
		return fmt.Errorf("uio: %s: %d bytes of config space at %#x", b.bdf, size, offset)
	}
	return nil
}

func (b *Bus) configErr(op string, offset int, err error) error {
	if errors.Is(err, os.ErrClosed) {
		return errClosed
	}
	return fmt.Errorf("uio: %s: %s config space at %#x: %w", b.bdf, op, offset, err)
}

// setINTxDisable sets or clears Interrupt Disable.
func (b *Bus) setINTxDisable(on bool) error {
	b.cfg.Lock()
	defer b.cfg.Unlock()
	return b.changeCommandLocked(regCommand+1, commandDisableInByte, on)
}

// changeCommandLocked sets or clears bits of one byte of Command. The kernel's
// handler may set Interrupt Disable meanwhile; whoever clears it by that has
// the interrupt come again.
func (b *Bus) changeCommandLocked(offset int64, bits byte, on bool) error {
	var v [1]byte
	if _, err := b.config.ReadAt(v[:], offset); err != nil {
		return b.configErr("read", int(offset), err)
	}
	if on == (v[0]&bits == bits) {
		return nil
	}
	v[0] ^= bits
	if _, err := b.config.WriteAt(v[:], offset); err != nil {
		return b.configErr("write", int(offset), err)
	}
	return nil
}

// Read32 implements guestdriver.Bus.
func (b *Bus) Read32(bar int, offset uint32) uint32 {
	if bar < 0 || bar >= numBARs || offset%4 != 0 || uint64(offset)+4 > uint64(len(b.bars[bar])) {
		return ^uint32(0)
	}
	return mmio.Load(b.bars[bar], offset)
}

// Write32 implements guestdriver.Bus.
func (b *Bus) Write32(bar int, offset uint32, v uint32) {
	if bar < 0 || bar >= numBARs || offset%4 != 0 || uint64(offset)+4 > uint64(len(b.bars[bar])) {
		return
	}
	mmio.Store(b.bars[bar], offset, v)
}

// Reset implements guestdriver.Bus. The kernel puts configuration space back
// afterwards.
func (b *Bus) Reset() error {
	// Interrupt Disable is put back, too: nobody clears it meanwhile.
	b.cfg.Lock()
	defer b.cfg.Unlock()
	if b.isClosed() {
		return errClosed
	}
	if err := b.resetFunction(); err != nil {
		return fmt.Errorf("uio: reset %s: %w", b.bdf, err)
	}
	return nil
}

func (b *Bus) resetFunction() error {
	// Without O_CREATE and O_TRUNC: it is a file of the kernel.
	f, err := os.OpenFile(filepath.Join(b.dir, "reset"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("1")
	return errors.Join(err, f.Close())
}

func (b *Bus) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

func (b *Bus) enabled() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.line != nil
}

// Close implements guestdriver.Bus.
func (b *Bus) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	line := b.line
	b.mu.Unlock()
	if line != nil {
		line.end()
	}
	var errs []error
	if b.config != nil {
		b.cfg.Lock()
		// No DMA into memory that is about to be somebody else's, and no
		// interrupt that nobody waits for.
		errs = append(errs, b.changeCommandLocked(regCommand, commandMaster, false),
			b.changeCommandLocked(regCommand+1, commandDisableInByte, true), b.config.Close())
		b.cfg.Unlock()
	}
	if b.node >= 0 {
		unix.Close(b.node)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.bars {
		if m != nil {
			errs = append(errs, pool.Blank(m))
		}
	}
	return errors.Join(append(errs, b.memory.Blank(), b.pages.close())...)
}
