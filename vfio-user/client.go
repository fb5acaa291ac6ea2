// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Memory is what a client's device may reach by message. The client calls it
// from one goroutine, which without a twin socket also reads the replies to the
// client's requests: then it must not make any.
type Memory interface {
	ReadDMA(iova uint64, p []byte) error
	WriteDMA(iova uint64, p []byte) error
}

// ClientConfig is how a client presents itself. A zero limit stands for its
// default.
type ClientConfig struct {
	Memory        Memory        // nil: the device's DMA messages get EFAULT
	MaxTransfer   int           // bytes of data in a message, default 1 MiB
	MaxFDs        int           // file descriptors in a message, default 16
	WriteMultiple bool          // ask for VFIO_USER_REGION_WRITE_MULTI
	MaxDMAMaps    int           // to ask for, default 65535, at most 2^24
	Timeout       time.Duration // of a request, default 5 s
	Spin          time.Duration // as Config.Spin
	// TwinSocket asks for a socket for the device's DMA messages alone. They are
	// served by another goroutine then, and Memory may make requests.
	TwinSocket bool
}

const defaultTimeout = 5 * time.Second

// Client is the other end of a [Server]. Its methods may be called from any
// goroutine; requests are answered in the order in which they were made. A
// request that times out ends the connection.
type Client struct {
	cfg    ClientConfig
	st     *stream
	limits limits
	done   chan struct{} // closed when the connection has ended

	sendMu sync.Mutex // order of ids on the wire
	out    []byte     // scratch, under sendMu

	mu      sync.Mutex
	waiting map[uint16]*request
	lastID  uint16
	twin    *twin // nil: there is none
	err     error // why the connection ended
}

// request is one that waits for its reply. Its fields are under Client.mu
// until done is closed.
type request struct {
	cmd     Command
	id      uint16
	done    chan struct{}
	payload []byte // of the reply, a copy
	takes   bool   // a reply may bring descriptors
	fds     []int  // of the reply
	err     error
}

// Dial connects to the server that listens at path.
func Dial(ctx context.Context, path string, cfg ClientConfig) (*Client, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("vfiouser: dial: %w", err)
	}
	return NewClient(c.(*net.UnixConn), cfg)
}

// NewClient takes over a connection and agrees on the version.
func NewClient(conn *net.UnixConn, cfg ClientConfig) (*Client, error) {
	preset(&cfg.MaxTransfer, defaultMaxTransfer)
	preset(&cfg.MaxFDs, defaultServerFDs)
	preset(&cfg.MaxDMAMaps, defaultMaxDMAMaps)
	preset(&cfg.Timeout, defaultTimeout)
	preset(&cfg.Spin, defaultSpin)
	if cfg.MaxTransfer < 0 || cfg.MaxTransfer > mostTransfer || cfg.MaxFDs < 0 || cfg.MaxFDs > mostFDs ||
		cfg.MaxDMAMaps < 0 || cfg.MaxDMAMaps > mostDMAMaps {
		conn.Close()
		return nil, fmt.Errorf("vfiouser: client limit out of range: %w", syscall.EINVAL)
	}
	st, err := newStream(conn, mostHead+max(cfg.MaxTransfer, leastMessage), cfg.MaxFDs, cfg.Spin, cfg.Timeout)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("vfiouser: client: %w", err)
	}
	c := &Client{cfg: cfg, st: st, done: make(chan struct{}), waiting: make(map[uint16]*request)}
	go c.run()
	if err := c.version(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection. Requests that wait fail with net.ErrClosed.
func (c *Client) Close() error {
	c.st.close()
	<-c.done
	return nil
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// run reads replies and serves the device's DMA messages.
func (c *Client) run() {
	err := c.read()
	c.st.close()
	c.st.discard()
	if isClosed(err) {
		err = net.ErrClosed
	}
	c.mu.Lock()
	t := c.twin
	c.err = fmt.Errorf("vfiouser: client: %w", err)
	for id, r := range c.waiting {
		r.err = c.err
		close(r.done)
		delete(c.waiting, id)
	}
	c.mu.Unlock()
	t.stop()
	close(c.done)
}

func (c *Client) read() error {
	for {
		m, ok, err := c.st.next()
		switch {
		case err != nil:
			return err
		case !ok:
			if err := c.st.fill(); err != nil {
				return err
			}
			continue
		}
		if m.flags&flagTypeMask == typeReply {
			c.answer(&m)
			m.close()
			continue
		}
		m.close() // no command that we know carries any
		if err := c.serve(c.st, &m); err != nil {
			return err
		}
	}
}

// answer hands a reply to the request that it belongs to.
func (c *Client) answer(m *message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.waiting[m.id]
	if r == nil || r.cmd != m.cmd {
		return
	}
	delete(c.waiting, m.id)
	switch {
	case m.flags&flagError != 0:
		e := &Error{Command: m.cmd, Errno: syscall.Errno(m.errno)}
		if e.Errno == 0 || e.Errno > maxErrno {
			e.Errno = syscall.EIO
		}
		r.err = e
	case m.tooLong:
		r.err = fmt.Errorf("vfiouser: %v: reply of %d bytes: %w", m.cmd, m.size, syscall.EMSGSIZE)
	case m.badFDs:
		r.err = fmt.Errorf("vfiouser: %v: reply with too many file descriptors: %w", m.cmd, syscall.EPROTO)
	default:
		r.payload = append([]byte(nil), m.payload...)
		if r.takes {
			r.fds, m.fds = m.fds, nil
		}
	}
	close(r.done)
}

// serve answers a command of the server that came in by st.
func (c *Client) serve(st *stream, m *message) error {
	out := make([]byte, headerSize, headerSize+dmaAccessSize)
	out, err := c.dma(out, m)
	if m.flags&flagNoReply != 0 {
		return nil
	}
	h := header{id: m.id, cmd: m.cmd, size: uint32(len(out)), flags: typeReply}
	if err != nil {
		out = out[:headerSize]
		h.size, h.flags, h.errno = headerSize, typeReply|flagError, uint32(errnoOf(err))
	}
	h.appendTo(out[:0])
	return st.send(out)
}

// dma does what VFIO_USER_DMA_READ or _WRITE asks and appends the reply.
func (c *Client) dma(out []byte, m *message) ([]byte, error) {
	if m.tooLong {
		return out, syscall.E2BIG
	}
	if m.cmd != CommandDMARead && m.cmd != CommandDMAWrite {
		return out, syscall.ENOTSUP
	}
	var a dmaAccess
	if err := a.UnmarshalBinary(m.payload); err != nil {
		return out, syscall.EINVAL
	}
	data := m.payload[dmaAccessSize:]
	switch {
	case a.count > uint64(c.cfg.MaxTransfer):
		return out, syscall.E2BIG
	case c.cfg.Memory == nil:
		return out, syscall.EFAULT
	case m.cmd == CommandDMAWrite && a.count != uint64(len(data)):
		return out, syscall.EINVAL
	}
	out, _ = a.AppendBinary(out)
	if m.cmd == CommandDMAWrite {
		return out, c.cfg.Memory.WriteDMA(a.addr, data)
	}
	n := len(out)
	out = append(out, make([]byte, a.count)...)
	return out, c.cfg.Memory.ReadDMA(a.addr, out[n:])
}

// post sends a message. r is nil for one without a reply. The payload may come
// in two parts.
func (c *Client) post(cmd Command, head, data []byte, r *request, fds ...int) error {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	h := header{cmd: cmd, size: uint32(headerSize + len(head) + len(data)), flags: typeCommand}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	for {
		c.lastID++
		if c.waiting[c.lastID] == nil {
			break
		}
	}
	h.id = c.lastID
	if r != nil {
		if len(c.waiting) >= 1<<15 {
			defer c.mu.Unlock()
			return fmt.Errorf("vfiouser: %v: too many requests: %w", cmd, syscall.EBUSY)
		}
		r.id = h.id
		c.waiting[h.id] = r
	} else {
		h.flags |= flagNoReply
	}
	c.mu.Unlock()
	c.out = append(append(h.appendTo(c.out[:0]), head...), data...)
	if err := c.st.send(c.out, fds...); err != nil {
		return fmt.Errorf("vfiouser: %v: %w", cmd, err)
	}
	return nil
}

// do makes a request and returns the payload of the reply.
func (c *Client) do(cmd Command, head, data []byte, fds ...int) ([]byte, error) {
	r := &request{cmd: cmd, done: make(chan struct{})}
	err := c.await(r, head, data, fds...)
	select {
	case <-r.done:
		return r.payload, err
	default:
		return nil, err // r may be written to yet
	}
}

// doFDs makes a request and returns the payload of the reply and the descriptors
// that came with it, which are the caller's.
func (c *Client) doFDs(cmd Command, head []byte) ([]byte, []int, error) {
	r := &request{cmd: cmd, done: make(chan struct{}), takes: true}
	err := c.await(r, head, nil)
	select {
	case <-r.done:
		return r.payload, r.fds, err
	default:
		return nil, nil, err // r may be written to yet
	}
}

func (c *Client) await(r *request, head, data []byte, fds ...int) error {
	timer := time.NewTimer(c.cfg.Timeout)
	defer timer.Stop()
	if err := c.post(r.cmd, head, data, r, fds...); err != nil {
		return err
	}
	select {
	case <-r.done:
		return r.err
	case <-timer.C:
		c.st.close()
		c.mu.Lock()
		if c.waiting[r.id] == r {
			delete(c.waiting, r.id) // whoever reads may not come to its end for long
		}
		r.takes = false
		late := r.fds
		r.fds = nil
		c.mu.Unlock()
		closeFDs(late)
		return fmt.Errorf("vfiouser: %v: %w", r.cmd, os.ErrDeadlineExceeded)
	}
}

// short says that a reply lacks something.
func short(cmd Command) error {
	return fmt.Errorf("vfiouser: %v: reply does not match the request: %w", cmd, syscall.EPROTO)
}

// Info returns how many regions and IRQ indexes the device has and whether it
// can be reset.
func (c *Client) Info() (regions, irqs int, resettable bool, err error) {
	head, _ := deviceInfo{argsz: deviceInfoSize}.AppendBinary(nil)
	p, err := c.do(CommandDeviceInfo, head, nil)
	if err != nil {
		return 0, 0, false, err
	}
	var r deviceInfo
	if r.UnmarshalBinary(p) != nil {
		return 0, 0, false, short(CommandDeviceInfo)
	}
	return int(r.regions), int(r.irqs), r.flags&deviceFlagReset != 0, nil
}

// Region returns the description of a region, without its areas.
func (c *Client) Region(index int) (Region, error) {
	head, _ := regionInfo{argsz: regionInfoSize, index: uint32(index)}.AppendBinary(nil)
	p, err := c.do(CommandRegionInfo, head, nil)
	if err != nil {
		return Region{}, err
	}
	var r regionInfo
	if r.UnmarshalBinary(p) != nil || r.index != uint32(index) {
		return Region{}, short(CommandRegionInfo)
	}
	return Region{Size: r.size, Flags: RegionFlags(r.flags) & (RegionRead | RegionWrite)}, nil
}

// IRQ returns the description of an IRQ index.
func (c *Client) IRQ(index int) (IRQ, error) {
	head, _ := irqInfo{argsz: irqInfoSize, index: uint32(index)}.AppendBinary(nil)
	p, err := c.do(CommandIRQInfo, head, nil)
	if err != nil {
		return IRQ{}, err
	}
	var r irqInfo
	if r.UnmarshalBinary(p) != nil || r.index != uint32(index) {
		return IRQ{}, short(CommandIRQInfo)
	}
	return IRQ{Count: r.count, Flags: IRQFlags(r.flags)}, nil
}

// ReadRegion fills p from a region, in several messages if one cannot hold it.
func (c *Client) ReadRegion(region int, offset uint64, p []byte) error {
	for {
		n := min(len(p), c.limits.maxTransfer)
		head, _ := regionAccess{offset, uint32(region), uint32(n)}.AppendBinary(nil)
		b, err := c.do(CommandRegionRead, head, nil)
		if err != nil {
			return err
		}
		var r regionAccess
		if r.UnmarshalBinary(b) != nil || int64(r.count) != int64(n) || len(b) != regionAccessSize+n {
			return short(CommandRegionRead)
		}
		copy(p, b[regionAccessSize:])
		offset += uint64(n)
		if p = p[n:]; len(p) == 0 {
			return nil
		}
	}
}

// WriteRegion stores p to a region and waits until the device has it, in
// several messages if one cannot hold it.
func (c *Client) WriteRegion(region int, offset uint64, p []byte) error {
	for {
		n := min(len(p), c.limits.maxTransfer)
		head, _ := regionAccess{offset, uint32(region), uint32(n)}.AppendBinary(nil)
		b, err := c.do(CommandRegionWrite, head, p[:n])
		if err != nil {
			return err
		}
		var r regionAccess
		if r.UnmarshalBinary(b) != nil || int64(r.count) != int64(n) {
			return short(CommandRegionWrite)
		}
		offset += uint64(n)
		if p = p[n:]; len(p) == 0 {
			return nil
		}
	}
}

// PostRegion stores p, of one message's length at most, to a region without
// waiting and without hearing of a failure.
func (c *Client) PostRegion(region int, offset uint64, p []byte) error {
	if len(p) > c.limits.maxTransfer {
		return fmt.Errorf("vfiouser: post of %d bytes: %w", len(p), syscall.E2BIG)
	}
	var head [regionAccessSize]byte
	_, _ = regionAccess{offset, uint32(region), uint32(len(p))}.AppendBinary(head[:0])
	return c.post(CommandRegionWrite, head[:], p, nil)
}

// RegionStore is one write of [Client.WriteRegions], of 8 bytes at most.
type RegionStore struct {
	Region int
	Offset uint64
	Data   []byte
}

// WriteRegions makes several small writes in one message and returns how many
// were done. The server has to allow it: ENOTSUP otherwise.
func (c *Client) WriteRegions(w []RegionStore) (int, error) {
	if !c.limits.writeMultiple {
		return 0, &Error{Command: CommandRegionWriteMulti, Errno: syscall.ENOTSUP}
	}
	p := binary.NativeEndian.AppendUint64(nil, uint64(len(w)))
	for _, e := range w {
		if len(e.Data) > multiDataSize {
			return 0, &Error{Command: CommandRegionWriteMulti, Errno: syscall.EINVAL}
		}
		p, _ = regionAccess{e.Offset, uint32(e.Region), uint32(len(e.Data))}.AppendBinary(p)
		var data [multiDataSize]byte
		copy(data[:], e.Data)
		p = append(p, data[:]...)
	}
	b, err := c.do(CommandRegionWriteMulti, p, nil)
	if err != nil {
		return 0, err
	}
	cur := cursor{b: b}
	n := cur.u64()
	if cur.short || n > uint64(len(w)) {
		return 0, short(CommandRegionWriteMulti)
	}
	return int(n), nil
}

// Map gives the device size bytes of f from offset on at iova. With a nil f the
// device reaches them by message. f may be closed afterwards.
func (c *Client) Map(iova, size, offset uint64, prot Prot, f *os.File) error {
	return c.mapDMA(dmaMap{argsz: dmaMapSize, offset: offset, addr: iova, size: size}, prot, f)
}

// MapFileIO is Map for a file that the device has to read and write instead of
// mapping it.
func (c *Client) MapFileIO(iova, size, offset uint64, prot Prot, f *os.File) error {
	return c.mapDMA(dmaMap{argsz: dmaMapSize, flags: dmaMapFileIO, offset: offset, addr: iova, size: size}, prot, f)
}

func (c *Client) mapDMA(r dmaMap, prot Prot, f *os.File) error {
	if prot&ProtRead != 0 {
		r.flags |= dmaMapRead
	}
	if prot&ProtWrite != 0 {
		r.flags |= dmaMapWrite
	}
	head, _ := r.AppendBinary(nil)
	if f == nil {
		_, err := c.do(CommandDMAMap, head, nil)
		return err
	}
	// Not f.Fd: that would make the file blocking for everyone.
	rc, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("vfiouser: map: %w", err)
	}
	var sent error
	err = rc.Control(func(fd uintptr) { _, sent = c.do(CommandDMAMap, head, nil, int(fd)) })
	if err != nil {
		return fmt.Errorf("vfiouser: map: %w", err)
	}
	return sent
}

// Unmap takes the maps in a range away and returns how many bytes they had.
func (c *Client) Unmap(iova, size uint64) (uint64, error) {
	return c.unmap(dmaUnmap{argsz: dmaUnmapSize, addr: iova, size: size})
}

// UnmapAll takes all maps away and returns how many bytes they had.
func (c *Client) UnmapAll() (uint64, error) {
	return c.unmap(dmaUnmap{argsz: dmaUnmapSize, flags: dmaUnmapAll})
}

func (c *Client) unmap(r dmaUnmap) (uint64, error) {
	head, _ := r.AppendBinary(nil)
	b, err := c.do(CommandDMAUnmap, head, nil)
	if err != nil {
		return 0, err
	}
	if r.UnmarshalBinary(b) != nil {
		return 0, short(CommandDMAUnmap)
	}
	return r.size, nil
}

// AssignIRQ has the vectors from start on signalled through eventfds, one for
// each. The descriptors stay the caller's.
func (c *Client) AssignIRQ(index, start int, fds ...int) error {
	for len(fds) > 0 {
		n := min(len(fds), c.limits.maxFDs)
		if n == 0 {
			return fmt.Errorf("vfiouser: server takes no file descriptors: %w", syscall.EPROTO)
		}
		if err := c.setIRQs(irqDataEventFD|irqActionTrigger, index, start, n, fds[:n]...); err != nil {
			return err
		}
		start += n
		fds = fds[n:]
	}
	return nil
}

// UnassignIRQ takes the eventfds of vectors away.
func (c *Client) UnassignIRQ(index, start, count int) error {
	return c.setIRQs(irqDataEventFD|irqActionTrigger, index, start, count)
}

// DisableIRQ takes all eventfds of an index away.
func (c *Client) DisableIRQ(index int) error {
	return c.setIRQs(irqDataNone|irqActionTrigger, index, 0, 0)
}

// TriggerIRQ has the server signal vectors, to test the way.
func (c *Client) TriggerIRQ(index, start, count int) error {
	return c.setIRQs(irqDataNone|irqActionTrigger, index, start, count)
}

// MaskIRQ masks or unmasks vectors.
func (c *Client) MaskIRQ(index, start, count int, masked bool) error {
	flags := irqDataNone | irqActionUnmask
	if masked {
		flags = irqDataNone | irqActionMask
	}
	return c.setIRQs(flags, index, start, count)
}

// ResampleINTx has the server unmask INTx whenever an eventfd is signalled.
func (c *Client) ResampleINTx(fd int) error {
	return c.setIRQs(irqDataEventFD|irqActionUnmask, IRQINTx, 0, 1, fd)
}

func (c *Client) setIRQs(flags uint32, index, start, count int, fds ...int) error {
	head, _ := irqSet{irqSetSize, flags, uint32(index), uint32(start), uint32(count)}.AppendBinary(nil)
	_, err := c.do(CommandSetIRQs, head, nil, fds...)
	return err
}

// Reset resets the device.
func (c *Client) Reset() error {
	_, err := c.do(CommandReset, nil, nil)
	return err
}
