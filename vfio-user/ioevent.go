// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Kinds of entries in VFIO_USER_DEVICE_GET_REGION_IO_FDS.
const (
	ioTypeEventFD uint32 = 0 // VFIO_USER_IO_FD_TYPE_IOEVENTFD
	ioTypeShadow  uint32 = 2 // VFIO_USER_IO_FD_TYPE_IOEVENTFD_SHADOW, of libvfio-user
)

// Flags of an entry (KVM_IOEVENTFD_FLAG_*).
const (
	ioFlagMatch uint32 = 1 << 0
	ioFlagPIO   uint32 = 1 << 1
)

const (
	regionIOFDsSize = 16
	// ioEntrySize is an entry with room for a shadow, as all implementations have
	// it; ioEntryPlain is one as the specification describes it, which a client
	// takes as well.
	ioEntrySize  = 48
	ioEntryPlain = 40
	// maxIOEvents bounds the entries of a region.
	maxIOEvents = 128
)

// IOEvent is a store to a region that a client may have the kernel signal through
// an eventfd instead of sending a message. It is an offer: where the client makes
// no use of it, the store arrives by message.
type IOEvent struct {
	Offset uint64
	Size   uint64 // of the store, 1, 2, 4 or 8; 0: any
	Match  bool   // stores of Data only
	Data   uint64
	PIO    bool // the region is in I/O space

	// Shadow is memory that gets the value stored, at ShadowOffset, a multiple of
	// 8, so that nothing but the last value has to be taken. Nil: none. Only a
	// client with a kernel made for it can use an offer with a shadow. In a Config
	// the file stays the device's, as that of an Area does.
	Shadow       *os.File
	ShadowOffset uint64

	// File is the eventfd. In a Config it is nil: the server makes one for each
	// client that asks, watches it, and calls IOEventDevice. If it is not nil, it
	// stays the device's, and so does watching it. Those from a client belong to
	// the caller, as do shadows; events with the same descriptor share a File.
	File *os.File
}

// IOEventDevice is a Device with events that the server watches.
type IOEventDevice interface {
	Device
	// IOEvent says that the event, by its place in the region's description,
	// happened n times since the last call. Another goroutine than the one that
	// serves the connection calls it, one call at a time. Events and messages have
	// no order between them. After Disconnected there is no call before the next
	// client is served.
	IOEvent(region, event int, n uint64)
}

// checkIOEvents judges the events of a region in a configuration.
func checkIOEvents(r Region, dev Device) error {
	if len(r.IOEvents) > maxIOEvents {
		return fmt.Errorf("%d events", len(r.IOEvents))
	}
	_, watches := dev.(IOEventDevice)
	for i, e := range r.IOEvents {
		if err := e.check(r.Size); err != nil {
			return err
		}
		switch {
		case r.Flags&RegionWrite == 0:
			return fmt.Errorf("events of a region that is not written to")
		case e.File == nil && !watches:
			return fmt.Errorf("event at %#x: the device has no method IOEvent", e.Offset)
		case e.Shadow != nil && e.ShadowOffset&7 != 0:
			return fmt.Errorf("event at %#x: shadow at %#x", e.Offset, e.ShadowOffset)
		}
		if e.File != nil {
			rc, err := e.File.SyscallConn()
			if err == nil {
				cerr := rc.Control(func(fd uintptr) { err = checkEventFD(int(fd)) })
				err = errors.Join(err, cerr)
			}
			if err != nil {
				return fmt.Errorf("event at %#x: %w", e.Offset, err)
			}
		}
		if e.Shadow != nil {
			page := e.ShadowOffset &^ (pageSize - 1)
			if err := (Area{Size: pageSize, File: e.Shadow, FileOffset: page}).checkFile(RegionRead | RegionWrite); err != nil {
				return fmt.Errorf("event at %#x: shadow: %w", e.Offset, err)
			}
		}
		for _, o := range r.IOEvents[:i] {
			if o.Offset == e.Offset && (o.Size == e.Size || o.Size == 0 || e.Size == 0) && (!o.Match || !e.Match || o.Data == e.Data) {
				return fmt.Errorf("event at %#x twice", e.Offset)
			}
		}
	}
	return nil
}

// check judges an event by itself and by the size of its region.
func (e IOEvent) check(size uint64) error {
	ok := e.Offset < size && e.Size <= size-e.Offset && (!e.Match || e.Size != 0)
	switch e.Size {
	case 0, 8:
	case 1, 2, 4:
		ok = ok && e.Data>>(8*e.Size) == 0
	default:
		ok = false
	}
	if !ok {
		return fmt.Errorf("event for %d bytes (%#x) at %#x of %#x", e.Size, e.Data, e.Offset, size)
	}
	return nil
}

// regionIOFDs serves VFIO_USER_DEVICE_GET_REGION_IO_FDS. It offers the first
// events, as many as the client takes descriptors for. One whose argsz has no room
// for them learns their number and gets no descriptors yet.
func (c *conn) regionIOFDs(m *message) error {
	if !c.srv.offersIOEvents() {
		return syscall.ENOTSUP
	}
	var r irqInfo // the same four fields
	if err := r.UnmarshalBinary(m.payload); err != nil || r.argsz < regionIOFDsSize || r.flags != 0 || r.count != 0 || r.index >= NumRegions {
		return fmt.Errorf("io fds: argsz %d flags %#x region %d count %d in %d bytes: %w", r.argsz, r.flags, r.index, r.count, len(m.payload), syscall.EINVAL)
	}
	events := c.srv.cfg.Regions[r.index].IOEvents
	var files []any // *os.File or *watched, in the order of their indexes
	index := func(file any) uint32 {
		for i := range files {
			if files[i] == file {
				return uint32(i)
			}
		}
		files = append(files, file)
		return uint32(len(files) - 1)
	}
	var body []byte
	n := uint32(0)
	for i, e := range events {
		var file any = e.File
		if e.File == nil {
			file = watchedEvent{int(r.index), i}
		}
		before := len(files)
		fd, shadow, kind := index(file), uint32(0), ioTypeEventFD
		if e.Shadow != nil {
			shadow, kind = index(e.Shadow), ioTypeShadow
		}
		if len(files) > c.limits.peerFDs {
			files = files[:before]
			break
		}
		body = e.append(body, fd, shadow, kind)
		n++
	}
	reply := irqInfo{argsz: regionIOFDsSize + uint32(len(body)), index: r.index, count: n}
	if r.argsz >= reply.argsz {
		for _, f := range files {
			if err := c.lendEvent(f); err != nil {
				closeFDs(c.outFDs)
				c.outFDs = c.outFDs[:0]
				return fmt.Errorf("io fds of region %d: %w", r.index, err)
			}
		}
	} else {
		body = nil
	}
	c.out, _ = reply.AppendBinary(c.out)
	c.out = append(c.out, body...)
	return nil
}

func (s *Server) offersIOEvents() bool {
	for _, r := range s.cfg.Regions {
		if len(r.IOEvents) > 0 {
			return true
		}
	}
	return false
}

// append appends e as an entry.
func (e IOEvent) append(b []byte, fd, shadow, kind uint32) []byte {
	var flags uint32
	if e.Match {
		flags |= ioFlagMatch
	}
	if e.PIO {
		flags |= ioFlagPIO
	}
	b = binary.NativeEndian.AppendUint64(b, e.Offset)
	b = binary.NativeEndian.AppendUint64(b, e.Size)
	b = binary.NativeEndian.AppendUint32(b, fd)
	b = binary.NativeEndian.AppendUint32(b, kind)
	b = binary.NativeEndian.AppendUint32(b, flags)
	b = binary.NativeEndian.AppendUint32(b, shadow)
	b = binary.NativeEndian.AppendUint64(b, e.ShadowOffset)
	return binary.NativeEndian.AppendUint64(b, e.Data)
}

// lendEvent has the reply that is being made carry a descriptor of a file, or of
// the eventfd of a watched event.
func (c *conn) lendEvent(file any) error {
	w, ok := file.(watchedEvent)
	if !ok {
		return c.lend([]*os.File{file.(*os.File)})
	}
	if c.watch == nil {
		watch, err := newIOWatch(c.srv.dev.(IOEventDevice), c.srv.stats)
		if err != nil {
			return err
		}
		c.watch = watch
	}
	fd, err := c.watch.eventFD(w)
	if err != nil {
		return err
	}
	if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return err
	}
	c.outFDs = append(c.outFDs, fd)
	return nil
}

// watchedEvent names an event that the server watches.
type watchedEvent struct{ region, event int }

// ioWatch waits for the eventfds that a client has been lent and tells the device.
// All but run belongs to the goroutine of the connection.
type ioWatch struct {
	dev    IOEventDevice
	stats  *counters
	poll   *os.File // an epoll instance, watched by the runtime's own
	fds    map[watchedEvent]int
	done   chan struct{} // closed when run has ended
	events [16]unix.EpollEvent
}

func newIOWatch(dev IOEventDevice, stats *counters) (*ioWatch, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	w := &ioWatch{dev: dev, stats: stats, poll: os.NewFile(uintptr(fd), "epoll"), fds: make(map[watchedEvent]int), done: make(chan struct{})}
	go w.run()
	return w, nil
}

// eventFD returns the eventfd of an event, which is made when first asked for.
func (w *ioWatch) eventFD(e watchedEvent) (int, error) {
	if fd, ok := w.fds[e]; ok {
		return fd, nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, os.NewSyscallError("eventfd", err)
	}
	rc, err := w.poll.SyscallConn()
	if err == nil {
		// Both halves of the data: the descriptor, and the event it is for.
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd), Pad: int32(e.region<<16 | e.event)}
		cerr := rc.Control(func(poll uintptr) { err = unix.EpollCtl(int(poll), unix.EPOLL_CTL_ADD, fd, &ev) })
		if cerr != nil {
			err = cerr
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("epoll_ctl: %w", err)
	}
	w.fds[e] = fd
	return fd, nil
}

// run tells the device of events until the epoll instance is closed.
func (w *ioWatch) run() {
	defer close(w.done)
	rc, err := w.poll.SyscallConn()
	if err != nil {
		return
	}
	var b [8]byte
	for {
		n := 0
		err := rc.Read(func(poll uintptr) bool {
			n, _ = unix.EpollWait(int(poll), w.events[:], 0)
			return n > 0
		})
		if err != nil {
			return
		}
		for _, ev := range w.events[:n] {
			// The client can take the count before us, and O_NONBLOCK away.
			k, err := unix.Preadv2(int(ev.Fd), [][]byte{b[:]}, -1, unix.RWF_NOWAIT)
			if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
				k, err = unix.Read(int(ev.Fd), b[:])
			}
			if k != len(b) || err != nil {
				continue
			}
			w.stats.ioEvents.Add(1)
			w.dev.IOEvent(int(ev.Pad>>16), int(ev.Pad&0xffff), binary.NativeEndian.Uint64(b[:]))
		}
	}
}

// stop returns once the device is not called any more, and closes the eventfds.
func (w *ioWatch) stop() {
	if w == nil {
		return
	}
	w.poll.Close()
	<-w.done
	for _, fd := range w.fds {
		unix.Close(fd)
	}
}

// IOEvents returns the stores to a region that the device would have signalled;
// none if there is none or the device knows of no such thing. Their files are the
// caller's to close. It leaves out what it cannot express.
func (c *Client) IOEvents(region int) ([]IOEvent, error) {
	info, err := c.Region(region)
	if err != nil {
		return nil, err
	}
	argsz := uint32(regionIOFDsSize)
	for again := false; ; again = true {
		head, _ := irqInfo{argsz: argsz, index: uint32(region)}.AppendBinary(nil)
		p, fds, err := c.doFDs(CommandRegionIOFDs, head)
		if err != nil {
			return nil, err
		}
		var r irqInfo
		if r.UnmarshalBinary(p) != nil || r.index != uint32(region) || uint64(r.argsz) < uint64(len(p)) || uint32(len(p)) > argsz || again && r.argsz > argsz {
			closeFDs(fds)
			return nil, short(CommandRegionIOFDs)
		}
		if r.argsz > argsz {
			closeFDs(fds)
			if argsz = r.argsz; argsz > regionIOFDsSize+maxIOEvents*ioEntrySize {
				return nil, fmt.Errorf("vfiouser: %d bytes on events of region %d: %w", argsz, region, syscall.E2BIG)
			}
			continue
		}
		events, err := parseIOEvents(r.count, p[regionIOFDsSize:], info.Size, fds)
		closeFDs(fds)
		if err != nil {
			return nil, fmt.Errorf("vfiouser: events of region %d: %v: %w", region, err, syscall.EPROTO)
		}
		return events, nil
	}
}

// parseIOEvents takes the entries out of a reply. It takes over the descriptors
// that it uses.
func parseIOEvents(count uint32, b []byte, size uint64, fds []int) (events []IOEvent, err error) {
	entry := uint64(ioEntrySize)
	switch uint64(len(b)) {
	case uint64(count) * ioEntrySize:
	case uint64(count) * ioEntryPlain:
		entry = ioEntryPlain
	default:
		return nil, fmt.Errorf("%d events in %d bytes", count, len(b))
	}
	files := make(map[uint32]*os.File)
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	file := func(n uint32) (*os.File, error) {
		if int64(n) >= int64(len(fds)) {
			return nil, fmt.Errorf("descriptor %d of %d", n, len(fds))
		}
		if files[n] == nil {
			files[n] = os.NewFile(uintptr(fds[n]), "event")
			fds[n] = -1
		}
		return files[n], nil
	}
	for range count {
		c := cursor{b: b}
		b = b[entry:]
		e := IOEvent{Offset: c.u64(), Size: c.u64()}
		fd, kind, flags, shadow := c.u32(), c.u32(), c.u32(), c.u32()
		if entry == ioEntrySize {
			e.ShadowOffset = c.u64()
		}
		e.Data, e.Match, e.PIO = c.u64(), flags&ioFlagMatch != 0, flags&ioFlagPIO != 0
		if kind != ioTypeEventFD && kind != ioTypeShadow || flags&^(ioFlagMatch|ioFlagPIO) != 0 {
			continue
		}
		if !e.Match {
			e.Data = 0
		}
		if err := e.check(size); err != nil {
			return nil, err
		}
		if e.File, err = file(fd); err != nil {
			return nil, err
		}
		if kind == ioTypeShadow {
			if e.Shadow, err = file(shadow); err != nil {
				return nil, err
			}
		} else {
			e.ShadowOffset = 0
		}
		events = append(events, e)
	}
	return events, nil
}
