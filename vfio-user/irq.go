// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// IRQ indexes of a PCI device (VFIO_PCI_*_IRQ_INDEX).
const (
	IRQINTx = 0
	IRQMSI  = 1
	IRQMSIX = 2
	IRQErr  = 3
	IRQReq  = 4
	NumIRQs = 5
)

// maxVectors is the most that an index can have (MSI-X).
const maxVectors = 2048

// IRQFlags say what an IRQ index can do.
type IRQFlags uint32

// Flags of VFIO_USER_DEVICE_GET_IRQ_INFO. IRQNoResize says that vectors cannot
// be added one by one; QEMU asks for that, so leave it out.
const (
	IRQEventFD    IRQFlags = 1 << 0
	IRQMaskable   IRQFlags = 1 << 1
	IRQAutoMasked IRQFlags = 1 << 2
	IRQNoResize   IRQFlags = 1 << 3
)

// IRQ describes an IRQ index: how many vectors, and what they can do.
type IRQ struct {
	Count uint32
	Flags IRQFlags
}

// vector is one interrupt. Its eventfd is signalled and closed under mu, so that
// a signal never hits a descriptor that has become something else.
//
//	        trigger                     trigger, AUTOMASKED
//	armed ----------> armed (signalled) -------------------> masked
//	masked --trigger--> masked, pending --unmask--> armed (signalled)
type vector struct {
	mu       sync.Mutex
	fd       int        // -1: none
	signal   *ioControl // of fd
	masked   bool
	pending  bool
	asserted bool // level of INTx, the device's own state
}

// irqs are the interrupts of a device.
type irqs struct {
	stats    *counters
	info     [NumIRQs]IRQ
	vectors  [NumIRQs][]vector
	signals  *signaller
	resample *resample // of INTx; for the connection's goroutine
}

func newIRQs(info [NumIRQs]IRQ, stats *counters) *irqs {
	q := &irqs{info: info, stats: stats, signals: new(signaller)}
	for i := range q.vectors {
		q.vectors[i] = make([]vector, info[i].Count)
		for j := range q.vectors[i] {
			q.vectors[i][j].fd = -1
		}
	}
	return q
}

// Trigger signals an interrupt, from any goroutine, without blocking. If the
// client has assigned no eventfd to the vector, the interrupt is counted and
// gone; if the vector is masked, it is kept until unmasked.
func (s *Server) Trigger(index, vector int) error {
	if index < 0 || index >= NumIRQs || vector < 0 || vector >= len(s.irqs.vectors[index]) {
		return fmt.Errorf("vfiouser: trigger irq %d vector %d: %w", index, vector, syscall.EINVAL)
	}
	v := &s.irqs.vectors[index][vector]
	v.mu.Lock()
	s.irqs.fire(index, v)
	v.mu.Unlock()
	return nil
}

// SetINTx sets the level of the interrupt pin. Asserting signals; when the
// client unmasks with the pin still asserted, the server signals again.
func (s *Server) SetINTx(asserted bool) error {
	if len(s.irqs.vectors[IRQINTx]) == 0 {
		return fmt.Errorf("vfiouser: set intx: %w", syscall.EINVAL)
	}
	v := &s.irqs.vectors[IRQINTx][0]
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.asserted
	v.asserted = asserted
	if !asserted {
		v.pending = false
	} else if !was {
		s.irqs.fire(IRQINTx, v)
	}
	return nil
}

// fire signals v, which is locked.
func (q *irqs) fire(index int, v *vector) {
	switch {
	case v.masked:
		v.pending = true
		return
	case v.fd < 0:
		q.stats.triggersUnassigned.Add(1)
		return
	}
	if err := q.signals.signal(&v.signal); err != nil {
		q.stats.triggersFailed.Add(1)
		return
	}
	q.stats.triggers.Add(1)
	v.masked = q.info[index].Flags&IRQAutoMasked != 0
}

// setMasked masks or unmasks v, which is locked.
func (q *irqs) setMasked(index int, v *vector, masked bool) {
	v.masked = masked
	if !masked && (v.pending || v.asserted) {
		v.pending = false
		q.fire(index, v)
	}
}

// assign gives v an eventfd, -1 for none, and takes it over.
func (q *irqs) assign(index int, v *vector, fd int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fd >= 0 {
		unix.Close(v.fd)
	}
	v.fd, v.signal = fd, nil
	if fd >= 0 {
		v.signal = q.signals.control(fd)
	}
	switch {
	case fd < 0:
		v.masked, v.pending = false, false
	case v.asserted && !v.masked:
		q.fire(index, v)
	}
}

// disable takes the eventfds of an index away.
func (q *irqs) disable(index int) {
	for i := range q.vectors[index] {
		q.assign(index, &q.vectors[index][i], -1)
	}
	if index == IRQINTx {
		q.resample.stop()
		q.resample = nil
	}
}

// disableAll takes all eventfds away.
func (q *irqs) disableAll() {
	for i := range q.vectors {
		q.disable(i)
	}
}

// set serves VFIO_USER_DEVICE_SET_IRQS. data is what follows the fixed part.
// It takes over the descriptors in fds that it uses and sets those to -1.
func (q *irqs) set(r irqSet, data []byte, fds []int) error {
	kind, action := r.flags&irqDataBits, r.flags&irqActionBits
	if r.argsz < irqSetSize || r.index >= NumIRQs || r.flags&^(irqDataBits|irqActionBits) != 0 ||
		kind == 0 || kind&(kind-1) != 0 || action == 0 || action&(action-1) != 0 {
		return fmt.Errorf("irq set: argsz %d flags %#x index %d: %w", r.argsz, r.flags, r.index, syscall.EINVAL)
	}
	index := int(r.index)
	total := q.info[index].Count
	if r.start > total || r.count > total-r.start {
		return fmt.Errorf("irq %d has %d vectors, not %d+%d: %w", index, total, r.start, r.count, syscall.EINVAL)
	}
	if kind != irqDataEventFD && len(fds) > 0 {
		return fmt.Errorf("irq set: %d file descriptors too many: %w", len(fds), syscall.EINVAL)
	}
	if r.count == 0 {
		if kind != irqDataNone || action != irqActionTrigger {
			return fmt.Errorf("irq set of no vector: %w", syscall.EINVAL)
		}
		q.disable(index)
		return nil
	}
	if kind == irqDataBool && uint64(len(data)) < uint64(r.count) {
		return fmt.Errorf("irq set: %d flags for %d vectors: %w", len(data), r.count, syscall.EINVAL)
	}
	if kind == irqDataEventFD {
		return q.setEventFDs(index, r, action, fds)
	}
	if action != irqActionTrigger && q.info[index].Flags&IRQMaskable == 0 {
		return fmt.Errorf("irq %d cannot be masked: %w", index, syscall.ENOTTY)
	}
	for i := range int(r.count) {
		if kind == irqDataBool && data[i] == 0 {
			continue
		}
		v := &q.vectors[index][int(r.start)+i]
		v.mu.Lock()
		if action == irqActionTrigger {
			q.fire(index, v)
		} else {
			q.setMasked(index, v, action == irqActionMask)
		}
		v.mu.Unlock()
	}
	return nil
}

// setEventFDs assigns eventfds to vectors, or none, or one to the unmasking of
// INTx.
func (q *irqs) setEventFDs(index int, r irqSet, action uint32, fds []int) error {
	if len(fds) != 0 && len(fds) != int(r.count) {
		return fmt.Errorf("irq set: %d file descriptors for %d vectors: %w", len(fds), r.count, syscall.EINVAL)
	}
	if action == irqActionMask || action == irqActionUnmask && (index != IRQINTx || q.info[index].Flags&IRQMaskable == 0) {
		return fmt.Errorf("irq %d cannot be masked by eventfd: %w", index, syscall.ENOTTY)
	}
	if q.info[index].Flags&IRQEventFD == 0 {
		return fmt.Errorf("irq %d takes no eventfd: %w", index, syscall.EINVAL)
	}
	for _, fd := range fds {
		if err := checkEventFD(fd); err != nil {
			return fmt.Errorf("irq set: %w", err)
		}
	}
	if action == irqActionUnmask {
		q.resample.stop()
		q.resample = nil
		if len(fds) == 1 {
			fd := fds[0]
			fds[0] = -1
			q.resample = q.startResample(fd)
		}
		return nil
	}
	for i := range int(r.count) {
		v := &q.vectors[index][int(r.start)+i]
		if len(fds) == 0 {
			q.assign(index, v, -1)
			continue
		}
		fd := fds[i]
		fds[i] = -1
		q.assign(index, v, fd)
	}
	return nil
}

// resample waits for an eventfd and unmasks INTx each time it is signalled.
type resample struct {
	f    *os.File
	done chan struct{}
}

// startResample takes over fd. It makes it non-blocking for the poller; the
// client can undo that, and take the count before us, so no read may wait.
func (q *irqs) startResample(fd int) *resample {
	_ = unix.SetNonblock(fd, true)
	s := &resample{f: os.NewFile(uintptr(fd), "resample"), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		rc, err := s.f.SyscallConn()
		if err != nil {
			return
		}
		var b [8]byte
		for {
			var n int
			var failed error
			if rc.Read(func(fd uintptr) bool {
				n, failed = unix.Preadv2(int(fd), [][]byte{b[:]}, -1, unix.RWF_NOWAIT)
				if failed == unix.EOPNOTSUPP || failed == unix.ENOSYS {
					n, failed = unix.Read(int(fd), b[:])
				}
				return failed != unix.EAGAIN
			}) != nil || failed != nil && failed != unix.EINTR {
				return
			}
			if n != len(b) {
				continue
			}
			v := &q.vectors[IRQINTx][0]
			v.mu.Lock()
			q.setMasked(IRQINTx, v, false)
			v.mu.Unlock()
		}
	}()
	return s
}

// stop ends the wait and closes the eventfd.
func (s *resample) stop() {
	if s != nil {
		s.f.Close()
		<-s.done
	}
}

// checkEventFD refuses what is not an eventfd, as the kernel does: writing to
// anything else might block or do harm.
func checkEventFD(fd int) error {
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	switch {
	case err != nil:
		// Without /proc the type bits must do: an anonymous inode has none.
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != 0 {
			return fmt.Errorf("not an eventfd: %w", syscall.EINVAL)
		}
	case name != "anon_inode:[eventfd]":
		return fmt.Errorf("%s is not an eventfd: %w", name, syscall.EINVAL)
	}
	return nil
}
