// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"toebox/ci/bus/internal/access"
	"toebox/guestdriver"
	vfiouser "toebox/vfio-user"
)

// vectors is how many the adapter has (SPEC.md §9.1).
const vectors = 33

// Bus is a guestdriver.Bus by messages.
type Bus struct {
	*access.Regions // a Write32 is sent when it returns; the system call orders stores to memory before it
	path            string
	client          *vfiouser.Client
	events          [vectors]*os.File // eventfds

	mu      sync.Mutex // guards what follows; orders resets, vector set-up and maps
	mem     *memory
	sizes   map[uint64]uint64 // of allocations, by IOVA
	enabled int
	once    sync.Once
	err     error // of Close
}

var _ guestdriver.Bus = (*Bus)(nil)

// Dial connects to the server that listens at path. As firmware and kernel do
// before a driver starts, it enables memory space.
func Dial(ctx context.Context, path string, cfg vfiouser.ClientConfig) (*Bus, error) {
	client, err := vfiouser.Dial(ctx, path, cfg)
	if err != nil {
		return nil, fmt.Errorf("socket bus: %w", err)
	}
	b := &Bus{
		Regions: access.NewRegions(client.ReadRegion, client.WriteRegion, client.PostRegion),
		path:    path, client: client, sizes: map[uint64]uint64{},
	}
	if err := b.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("socket bus: %w", err), b.Close())
	}
	go b.watch()
	return b, nil
}

func (b *Bus) setUp() error {
	var err error
	if b.mem, err = newMemory(); err != nil {
		return err
	}
	for v := range b.events {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return fmt.Errorf("eventfd: %w", err)
		}
		b.events[v] = os.NewFile(uintptr(fd), "vector")
	}
	return access.EnableMemory(b)
}

// watch ends every Wait when the server is gone.
func (b *Bus) watch() {
	<-b.client.Done()
	for _, f := range b.events {
		f.Close() // os.File closes once, whoever does it
	}
}

// Name implements guestdriver.Bus.
func (b *Bus) Name() string { return "socket " + b.path }

// AllocDMA implements guestdriver.Bus.
func (b *Bus) AllocDMA(size int) (guestdriver.DMA, error) {
	d, err := b.alloc(size)
	if err != nil {
		return d, fmt.Errorf("socket bus: allocate %d bytes of DMA memory: %w", size, err)
	}
	return d, nil
}

func (b *Bus) alloc(size int) (guestdriver.DMA, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mem == nil {
		return guestdriver.DMA{}, net.ErrClosed
	}
	at, p, err := b.mem.take(size)
	if err != nil {
		return guestdriver.DMA{}, err
	}
	iova, n := firstIOVA+at, pages(uint64(size))
	if err := b.client.Map(iova, n, at, vfiouser.ProtRead|vfiouser.ProtWrite, b.mem.file); err != nil {
		return guestdriver.DMA{}, errors.Join(err, b.mem.give(at))
	}
	b.sizes[iova] = n
	return guestdriver.DMA{Bytes: p, IOVA: iova}, nil
}

// FreeDMA implements guestdriver.Bus. Memory that could not be unmapped is not
// used again.
func (b *Bus) FreeDMA(d guestdriver.DMA) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, ok := b.sizes[d.IOVA]
	if b.mem == nil || !ok {
		return fmt.Errorf("socket bus: free DMA memory at %#x: %w", d.IOVA, unix.EINVAL)
	}
	delete(b.sizes, d.IOVA)
	got, err := b.client.Unmap(d.IOVA, n)
	switch {
	case err != nil:
	case got != n:
		err = fmt.Errorf("the server unmapped %#x of %#x bytes", got, n)
	default:
		err = b.mem.give(d.IOVA - firstIOVA)
	}
	if err != nil {
		return fmt.Errorf("socket bus: free DMA memory at %#x: %w", d.IOVA, err)
	}
	return nil
}

// EnableVectors implements guestdriver.Bus.
func (b *Bus) EnableVectors(n int) error {
	if n < 1 || n > vectors {
		return fmt.Errorf("socket bus: enable %d vectors: %w", n, unix.EINVAL)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.assign(n); err != nil {
		return fmt.Errorf("socket bus: enable %d vectors: %w", n, err)
	}
	b.enabled = n
	return b.programLocked()
}

// assign hands the first n eventfds to the server. It takes one after another,
// for as long as the call lasts: the watcher may close them at any time.
func (b *Bus) assign(n int, taken ...int) error {
	if len(taken) == n {
		return b.client.AssignIRQ(vfiouser.IRQMSIX, 0, taken...)
	}
	rc, err := b.events[len(taken)].SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = rc.Control(func(fd uintptr) { sent = b.assign(n, append(taken, int(fd))...) })
	return errors.Join(err, sent)
}

// programLocked unmasks the table entries and turns MSI-X on.
func (b *Bus) programLocked() error {
	if b.enabled == 0 {
		return nil
	}
	access.Unmask(b, b.enabled, access.Anywhere)
	if err := access.EnableMSIX(b); err != nil {
		return fmt.Errorf("socket bus: enable vectors: %w", err)
	}
	return nil
}

// Wait implements guestdriver.Bus. When the server is gone it fails as when
// the bus is closed: nothing comes any more.
func (b *Bus) Wait(vector int) error {
	if vector < 0 || vector >= vectors {
		return fmt.Errorf("socket bus: wait for vector %d: %w", vector, unix.EINVAL)
	}
	var count [8]byte
	_, err := b.events[vector].Read(count[:]) // which sets it back to 0
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed):
		return net.ErrClosed
	}
	return fmt.Errorf("socket bus: wait for vector %d: %w", vector, err)
}

// Reset implements guestdriver.Bus by the protocol's own reset. Like the
// kernel around a function-level reset it puts Command and the MSI-X set-up
// back afterwards.
func (b *Bus) Reset() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := access.KeepCommand(b, b.client.Reset)
	if err == nil {
		err = b.programLocked()
	}
	if err != nil {
		return fmt.Errorf("socket bus: reset: %w", err)
	}
	return nil
}

// Close implements guestdriver.Bus. As a kernel does when a driver lets go, it
// resets the function and takes its maps away, so that nothing writes into the
// memory that goes. An adapter that is gone needs neither.
func (b *Bus) Close() error {
	b.once.Do(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		var errs []error
		select {
		case <-b.client.Done():
		default:
			errs = append(errs, b.client.Reset())
			_, err := b.client.UnmapAll()
			errs = append(errs, err)
		}
		errs = append(errs, b.client.Close())
		for _, f := range b.events {
			f.Close() // nil when set-up failed; closed when the watcher was first
		}
		if b.mem != nil {
			errs = append(errs, b.mem.close())
			b.mem = nil
		}
		if err := errors.Join(errs...); err != nil {
			b.err = fmt.Errorf("socket bus: close: %w", err)
		}
	})
	return b.err
}
