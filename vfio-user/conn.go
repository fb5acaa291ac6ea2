// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
)

const (
	// maxBatch is how many bytes of replies are gathered before they are sent;
	// they go in any case when no further message has arrived.
	maxBatch = 64 << 10
	// keepOutput is the largest reply buffer that is kept for the next reply.
	keepOutput = 1 << 20
	// mostHead is the most that stands before bulk data: header, unmap and
	// bitmap.
	mostHead = headerSize + dmaUnmapSize + dirtyBitmapSize
	// leastMessage is room for messages without bulk data, however small the
	// limit on that is.
	leastMessage = 8 << 10
	// loudFailures is how many refused requests of a connection are logged
	// each; after that only the 16th, 32nd, 64th and so on.
	loudFailures = 8
)

// conn serves one client. All of it but calls and peerMax belongs to the
// goroutine of ServeConn.
type conn struct {
	srv        *Server
	st         *stream
	goroutine  string // that serves it
	negotiated bool
	limits     limits
	out        []byte // replies to send
	outFDs     []int  // ours, to go with the reply that is being made, and then be closed
	failures   uint64
	twin       atomic.Pointer[twin] // nil: none; set once
	watch      *ioWatch             // nil: the client has been lent no eventfd

	calls   calls
	peerMax atomic.Int64 // what the client takes in one message, bytes of data
}

// ServeConn serves the client at the other end of c until it goes, the context
// ends, or the stream makes no sense any more, and closes c. It returns nil in
// the first two cases. One connection at a time: EBUSY otherwise.
func (s *Server) ServeConn(ctx context.Context, c *net.UnixConn) error {
	defer c.Close()
	if !s.enter(ctx) {
		s.stats.refused.Add(1)
		return fmt.Errorf("vfiouser: serve: a client is connected: %w", syscall.EBUSY)
	}
	defer s.leave()
	s.stats.connections.Add(1)

	st, err := newStream(c, mostHead+max(s.cfg.MaxTransfer, leastMessage), s.cfg.MaxFDs, s.cfg.Spin, s.cfg.SendTimeout)
	if err != nil {
		return fmt.Errorf("vfiouser: serve: %w", err)
	}
	k := &conn{srv: s, st: st, goroutine: goroutineID(), limits: s.own()}
	k.calls.byID = make(map[uint16]*call)
	k.calls.wrote = s.dma.wrote
	k.peerMax.Store(defaultMaxTransfer)
	stop := context.AfterFunc(ctx, func() {
		st.close()
		k.calls.close() // a device call may be waiting at the twin
	})
	s.dma.remote.Store(k)

	err = k.serve()

	// First whoever waits for this client, so that nothing below waits for
	// them; then what the client gave us; the device last.
	s.ending.Store(true)
	stop()
	st.close()
	st.discard()
	s.dma.remote.Store(nil)
	k.calls.close()
	k.twin.Load().stop()
	if e := s.dma.clear(); e != nil {
		s.log.Error("vfiouser: disconnect", "err", e)
	}
	s.irqs.disableAll()
	k.watch.stop()
	s.dev.Disconnected()
	if err == nil || isClosed(err) || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("vfiouser: serve: %w", err)
}

// transferLimit returns how much data a message to the client may carry.
func (c *conn) transferLimit() int { return int(c.peerMax.Load()) }

// serve handles messages until there are no more.
func (c *conn) serve() error {
	for {
		m, ok, err := c.st.next()
		if err != nil {
			return errors.Join(err, c.flush())
		}
		if !ok {
			if err := c.flush(); err != nil {
				return err
			}
			if err := c.st.fill(); err != nil {
				return err
			}
			continue
		}
		err = c.handle(&m)
		m.close()
		if err != nil {
			return err
		}
		if len(c.out) >= maxBatch {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
}

// flush sends the replies that have been gathered.
func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	err := c.st.send(c.out)
	c.out = c.out[:0]
	if cap(c.out) > keepOutput {
		c.out = nil
	}
	return err
}

// handle answers one message. An error is the end of the connection.
func (c *conn) handle(m *message) error {
	c.srv.stats.messages.Add(1)
	if c.srv.trace {
		c.srv.log.Debug("vfiouser: message", "cmd", m.cmd.String(), "id", m.id, "size", m.size, "flags", m.flags, "fds", len(m.fds))
	}
	if m.flags&flagTypeMask == typeReply {
		if c.limits.twin || !c.calls.answer(m) {
			c.srv.stats.strayReplies.Add(1)
		}
		return nil
	}
	mark := len(c.out)
	c.out = append(c.out, make([]byte, headerSize)...)
	err := c.dispatch(m)
	if err != nil {
		c.failed(m, err)
	}
	switch {
	case m.flags&flagNoReply != 0:
		c.out = c.out[:mark]
		closeFDs(c.outFDs)
		c.outFDs = c.outFDs[:0]
		return nil
	case err != nil:
		c.out = c.out[:mark]
		c.out = header{id: m.id, cmd: m.cmd, size: headerSize, flags: typeReply | flagError, errno: uint32(errnoOf(err))}.appendTo(c.out)
		return nil
	}
	h := header{id: m.id, cmd: m.cmd, size: uint32(len(c.out) - mark), flags: typeReply}
	h.appendTo(c.out[mark:mark])
	if len(c.outFDs) > 0 {
		return c.flushLent(mark)
	}
	return nil
}

// flushLent sends the replies that have been gathered, the last of them, which
// starts at mark, with descriptors: those belong to the message that the first
// byte sent with them belongs to.
func (c *conn) flushLent(mark int) (err error) {
	if mark > 0 {
		err = c.st.send(c.out[:mark])
	}
	if err == nil {
		err = c.st.send(c.out[mark:], c.outFDs...)
	}
	closeFDs(c.outFDs)
	c.out, c.outFDs = c.out[:0], c.outFDs[:0]
	return err
}

// failed counts a request that is refused and logs the first few.
func (c *conn) failed(m *message, err error) {
	noReply := m.flags&flagNoReply != 0
	if noReply {
		c.srv.stats.noReplyFailed.Add(1)
	} else {
		c.srv.stats.errors.Add(1)
	}
	c.failures++
	if c.failures <= loudFailures || c.failures&(c.failures-1) == 0 {
		c.srv.log.Warn("vfiouser: request refused", "cmd", m.cmd.String(), "id", m.id, "noreply", noReply, "err", err, "refused", c.failures)
	}
}

// dispatch does what a command asks and appends the payload of the reply.
func (c *conn) dispatch(m *message) error {
	switch {
	case m.flags&flagTypeMask != typeCommand:
		return fmt.Errorf("message type %d: %w", m.flags&flagTypeMask, syscall.EINVAL)
	case m.tooLong:
		return fmt.Errorf("message of %d bytes: %w", m.size, syscall.E2BIG)
	case m.badFDs || len(m.fds) > c.limits.maxFDs:
		return fmt.Errorf("more file descriptors than %d: %w", c.limits.maxFDs, syscall.EINVAL)
	case !c.negotiated && m.cmd != CommandVersion:
		return fmt.Errorf("no version yet: %w", syscall.EINVAL)
	case m.flags&flagNoReply != 0 && m.cmd == CommandFeature:
		return fmt.Errorf("%v without a reply, which could lose dirty pages: %w", m.cmd, syscall.EINVAL)
	case len(m.fds) > 0 && m.cmd != CommandDMAMap && m.cmd != CommandSetIRQs:
		return fmt.Errorf("%d file descriptors with %v: %w", len(m.fds), m.cmd, syscall.EINVAL)
	}
	switch m.cmd {
	case CommandVersion:
		return c.version(m)
	case CommandDMAMap:
		return c.dmaMap(m)
	case CommandDMAUnmap:
		return c.dmaUnmap(m)
	case CommandDeviceInfo:
		return c.deviceInfo(m)
	case CommandRegionInfo:
		return c.regionInfo(m)
	case CommandRegionIOFDs:
		return c.regionIOFDs(m)
	case CommandIRQInfo:
		return c.irqInfo(m)
	case CommandSetIRQs:
		return c.setIRQs(m)
	case CommandRegionRead:
		return c.regionRead(m)
	case CommandRegionWrite:
		return c.regionWrite(m)
	case CommandRegionWriteMulti:
		return c.regionWriteMulti(m)
	case CommandReset:
		return c.reset()
	case CommandFeature:
		return c.feature(m)
	case CommandMigrationDataRead:
		return c.readState(m)
	case CommandMigrationDataWrite:
		return c.writeState(m)
	case CommandPrecopyInfo:
		return c.precopyInfo(m)
	case CommandDMARead, CommandDMAWrite:
		return fmt.Errorf("%v to a server: %w", m.cmd, syscall.EINVAL)
	}
	return syscall.ENOTSUP
}

func (c *conn) version(m *message) error {
	if c.negotiated {
		return fmt.Errorf("version again: %w", syscall.EINVAL)
	}
	own := c.srv.own()
	mark := len(c.out)
	out, l, err := negotiate(c.out, m.payload, own)
	if err == nil && l.twin {
		if terr := c.startTwin(); terr != nil {
			// It is a convenience: there is a way without.
			c.srv.log.Warn("vfiouser: no twin socket", "err", terr)
			own.twin = false
			out, l, err = negotiate(out[:mark], m.payload, own)
		}
	}
	if err != nil {
		return err
	}
	c.out, c.limits, c.negotiated = out, l, true
	c.peerMax.Store(int64(l.maxTransfer))
	return nil
}

func (c *conn) deviceInfo(m *message) error {
	var r deviceInfo
	if err := r.UnmarshalBinary(m.payload); err != nil || r.argsz < deviceInfoSize {
		return fmt.Errorf("argsz %d in %d bytes: %w", r.argsz, len(m.payload), syscall.EINVAL)
	}
	r = deviceInfo{argsz: deviceInfoSize, flags: deviceFlagPCI, regions: NumRegions, irqs: NumIRQs}
	if c.srv.cfg.Resettable {
		r.flags |= deviceFlagReset
	}
	c.out, _ = r.AppendBinary(c.out)
	return nil
}

func (c *conn) irqInfo(m *message) error {
	var r irqInfo
	if err := r.UnmarshalBinary(m.payload); err != nil || r.argsz < irqInfoSize || r.index >= NumIRQs {
		return fmt.Errorf("argsz %d irq %d in %d bytes: %w", r.argsz, r.index, len(m.payload), syscall.EINVAL)
	}
	q := c.srv.cfg.IRQs[r.index]
	c.out, _ = irqInfo{argsz: irqInfoSize, flags: uint32(q.Flags), index: r.index, count: q.Count}.AppendBinary(c.out)
	return nil
}

func (c *conn) setIRQs(m *message) error {
	var r irqSet
	if err := r.UnmarshalBinary(m.payload); err != nil {
		return fmt.Errorf("irq set in %d bytes: %w", len(m.payload), syscall.EINVAL)
	}
	return c.srv.irqs.set(r, m.payload[irqSetSize:], m.fds)
}

func (c *conn) reset() error {
	if !c.srv.cfg.Resettable {
		return syscall.ENOTSUP
	}
	if err := c.srv.dev.Reset(); err != nil {
		return err
	}
	c.srv.DeviceReset()
	return nil
}

func (c *conn) dmaMap(m *message) error {
	c.srv.stats.dmaMaps.Add(1)
	var r dmaMap
	if err := r.UnmarshalBinary(m.payload); err != nil || r.argsz < dmaMapSize {
		return fmt.Errorf("argsz %d in %d bytes: %w", r.argsz, len(m.payload), syscall.EINVAL)
	}
	const known = dmaMapRead | dmaMapWrite | dmaMapMmap | dmaMapFileIO
	mode := r.flags & (dmaMapMmap | dmaMapFileIO)
	switch {
	case r.flags&^known != 0, r.flags&(dmaMapRead|dmaMapWrite) == 0, mode&(mode-1) != 0,
		len(m.fds) > 1, mode != 0 && len(m.fds) == 0:
		return fmt.Errorf("map flags %#x with %d file descriptors: %w", r.flags, len(m.fds), syscall.EINVAL)
	}
	fd := -1
	if len(m.fds) == 1 {
		fd = m.fds[0]
	}
	var prot Prot
	if r.flags&dmaMapRead != 0 {
		prot |= ProtRead
	}
	if r.flags&dmaMapWrite != 0 {
		prot |= ProtWrite
	}
	return c.srv.dma.mapFile(r, prot, fd, c.limits)
}

func (c *conn) dmaUnmap(m *message) error {
	c.srv.stats.dmaUnmaps.Add(1)
	var r dmaUnmap
	if err := r.UnmarshalBinary(m.payload); err != nil || r.argsz < dmaUnmapSize {
		return fmt.Errorf("argsz %d in %d bytes: %w", r.argsz, len(m.payload), syscall.EINVAL)
	}
	switch {
	case r.flags&^(dmaUnmapDirtyBitmap|dmaUnmapAll) != 0:
		return fmt.Errorf("unmap flags %#x: %w", r.flags, syscall.EINVAL)
	case r.flags&dmaUnmapDirtyBitmap != 0 && m.flags&flagNoReply != 0:
		return fmt.Errorf("unmap with a bitmap without a reply: %w", syscall.EINVAL)
	case r.flags&dmaUnmapDirtyBitmap != 0:
		return c.unmapDirty(r, m.payload[dmaUnmapSize:])
	}
	n, err := c.srv.dma.unmap(r.addr, r.size, r.flags&dmaUnmapAll != 0)
	if err != nil {
		return err
	}
	c.countUnmap(r, n)
	c.out, _ = dmaUnmap{argsz: dmaUnmapSize, flags: r.flags, addr: r.addr, size: n}.AppendBinary(c.out)
	return nil
}

// countUnmap counts the kinds of unmap that a client need not make: n bytes
// were mapped.
func (c *conn) countUnmap(r dmaUnmap, n uint64) {
	switch {
	case n == 0:
		c.srv.stats.dmaUnmapsVoid.Add(1)
	case n != r.size && r.flags&dmaUnmapAll == 0:
		c.srv.stats.dmaUnmapsWide.Add(1)
	}
}

// checkAccess refuses an access that is not wholly inside its region or that
// the region is not for. Its one comparison cannot overflow.
func (c *conn) checkAccess(r regionAccess, need RegionFlags) error {
	if r.region >= NumRegions {
		return fmt.Errorf("region %d: %w", r.region, syscall.EINVAL)
	}
	g := c.srv.cfg.Regions[r.region]
	if r.offset > g.Size || uint64(r.count) > g.Size-r.offset {
		return fmt.Errorf("%d bytes at %#x of region %d: %w", r.count, r.offset, r.region, syscall.EINVAL)
	}
	if g.Flags&need == 0 && r.count > 0 {
		return fmt.Errorf("access to region %d: %w", r.region, syscall.EINVAL)
	}
	return nil
}

// regionRead reads as much as the server allows, whatever less the client takes
// in a message of ours: the limit on a request is its receiver's, and there are
// clients that go beyond their own.
func (c *conn) regionRead(m *message) error {
	c.srv.stats.regionReads.Add(1)
	var r regionAccess
	if err := r.UnmarshalBinary(m.payload); err != nil {
		return fmt.Errorf("read in %d bytes: %w", len(m.payload), syscall.EINVAL)
	}
	if int64(r.count) > int64(c.srv.cfg.MaxTransfer) {
		return fmt.Errorf("read of %d bytes: %w", r.count, syscall.E2BIG)
	}
	if err := c.checkAccess(r, RegionRead); err != nil {
		return err
	}
	c.out, _ = r.AppendBinary(c.out)
	if r.count == 0 {
		return nil
	}
	// The device fills the reply in place.
	n := len(c.out)
	c.out = append(c.out, make([]byte, r.count)...)
	return c.srv.dev.ReadRegion(int(r.region), r.offset, c.out[n:])
}

func (c *conn) regionWrite(m *message) error {
	c.srv.stats.regionWrites.Add(1)
	if m.flags&flagNoReply != 0 {
		c.srv.stats.postedWrites.Add(1)
	}
	var r regionAccess
	if err := r.UnmarshalBinary(m.payload); err != nil {
		return fmt.Errorf("write in %d bytes: %w", len(m.payload), syscall.EINVAL)
	}
	if int64(r.count) > int64(c.srv.cfg.MaxTransfer) {
		return fmt.Errorf("write of %d bytes: %w", r.count, syscall.E2BIG)
	}
	data := m.payload[regionAccessSize:]
	if uint64(r.count) != uint64(len(data)) {
		return fmt.Errorf("write of %d bytes with %d: %w", r.count, len(data), syscall.EINVAL)
	}
	if err := c.checkAccess(r, RegionWrite); err != nil {
		return err
	}
	if r.count > 0 {
		if err := c.srv.dev.WriteRegion(int(r.region), r.offset, data); err != nil {
			return err
		}
	}
	c.out, _ = r.AppendBinary(c.out)
	return nil
}

// regionWriteMulti does the writes in order up to the first that fails. The
// reply says how many were done; it is an error if none was.
func (c *conn) regionWriteMulti(m *message) error {
	if !c.limits.writeMultiple {
		return syscall.ENOTSUP
	}
	cur := cursor{b: m.payload}
	count := cur.u64()
	if cur.short || count > uint64(len(cur.b))/multiEntrySize || count*multiEntrySize != uint64(len(cur.b)) {
		return fmt.Errorf("%d writes in %d bytes: %w", count, len(m.payload), syscall.EINVAL)
	}
	var done uint64
	for ; done < count; done++ {
		entry := cur.b[done*multiEntrySize:][:multiEntrySize]
		if err := c.multiEntry(entry, m.flags); err != nil {
			err = fmt.Errorf("write %d of %d: %w", done, count, err)
			if done == 0 || m.flags&flagNoReply != 0 {
				return err
			}
			c.failed(m, err)
			break
		}
	}
	c.out = binary.NativeEndian.AppendUint64(c.out, done)
	return nil
}

func (c *conn) multiEntry(b []byte, flags uint32) error {
	c.srv.stats.regionWrites.Add(1)
	if flags&flagNoReply != 0 {
		c.srv.stats.postedWrites.Add(1)
	}
	var r regionAccess
	if err := r.UnmarshalBinary(b); err != nil {
		return err
	}
	if r.count > multiDataSize {
		return fmt.Errorf("%d bytes: %w", r.count, syscall.EINVAL)
	}
	if err := c.checkAccess(r, RegionWrite); err != nil || r.count == 0 {
		return err
	}
	return c.srv.dev.WriteRegion(int(r.region), r.offset, b[regionAccessSize:][:r.count])
}
