// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"bytes"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// maxCalls bounds the DMA messages that wait for an answer, those included
// whose caller has given up: their ids must not be used again before the
// answer has come.
const maxCalls = 256

// calls are the commands that this end has sent and that are unanswered.
type calls struct {
	mu     sync.Mutex
	byID   map[uint16]*call
	lastID uint16
	closed bool
	wrote  func(iova, n uint64) // called for each write that the client has answered
}

// call is one of them. Its fields but done are under calls.mu.
type call struct {
	done   chan struct{} // closed with the answer, or when there will be none
	cmd    Command
	iova   uint64
	reply  []byte // where the data of a read goes; nil: nobody waits any more
	want   uint64
	count  uint64
	errno  syscall.Errno
	active bool
}

// ReadByMessage is Read, but asks the client for memory that has a file as well.
func (d *DMA) ReadByMessage(iova uint64, p []byte) error { return d.messages(iova, p, ProtRead) }

// WriteByMessage is Write, but gives the client what is for memory that has a
// file as well.
func (d *DMA) WriteByMessage(iova uint64, p []byte) error { return d.messages(iova, p, ProtWrite) }

func (d *DMA) messages(iova uint64, p []byte, prot Prot) error {
	if err := checkRange(iova, uint64(len(p))); err != nil {
		return err
	}
	until := deadline{size: len(p)}
	for len(p) > 0 {
		n, err := 0, error(syscall.EFAULT)
		if m := d.root.Load().find(iova); m != nil {
			if err = syscall.EACCES; m.prot&prot == prot {
				have := min(m.last-iova, uint64(len(p)-1)) + 1
				n, err = d.message(iova, p[:have], prot, &until)
			}
		}
		if err != nil {
			return dmaError(iova, uint64(len(p)), err)
		}
		iova += uint64(n)
		p = p[n:]
	}
	return nil
}

// deadline is when an access by message has to be over, however short the
// client's answers are: the time-out of one message, and once more for each 64 KiB
// of the access. It counts from the first message.
type deadline struct {
	size int
	at   time.Time
}

// left returns how long the next message may take.
func (l *deadline) left(each time.Duration) time.Duration {
	if l.at.IsZero() {
		l.at = time.Now().Add(each * time.Duration(1+l.size/maxPiece))
	}
	return min(each, time.Until(l.at))
}

// message moves the first bytes of an access by VFIO_USER_DMA_READ or _WRITE
// and returns how many. It holds no reader section: the client checks the
// address itself, and the unmap it may send meanwhile must not wait for us.
func (d *DMA) message(iova uint64, p []byte, prot Prot, until *deadline) (int, error) {
	c := d.remote.Load()
	if c == nil {
		return 0, syscall.EFAULT // the client has gone, and its maps with it
	}
	if c.twin.Load() == nil && goroutineID() == c.goroutine {
		return 0, syscall.EDEADLK
	}
	p = p[:min(len(p), c.transferLimit())]
	d.stats.dmaMessages.Add(1)
	cmd := CommandDMARead
	if prot != ProtRead {
		cmd = CommandDMAWrite
	}
	n, errno := c.call(cmd, iova, p, until.left(c.srv.cfg.DMATimeout))
	if errno != 0 {
		d.stats.dmaMessageErrors.Add(1)
		return 0, errno
	}
	return n, nil
}

// call sends a DMA command and waits for the answer.
func (c *conn) call(cmd Command, iova uint64, p []byte, timeout time.Duration) (int, syscall.Errno) {
	k := &call{done: make(chan struct{}), cmd: cmd, iova: iova, want: uint64(len(p)), active: true}
	out := make([]byte, 0, headerSize+dmaAccessSize+len(p))
	size := headerSize + dmaAccessSize
	if cmd == CommandDMARead {
		k.reply = p
	} else {
		size += len(p)
	}
	id, errno := c.calls.add(k)
	if errno != 0 {
		return 0, errno
	}
	out = header{id: id, cmd: cmd, size: uint32(size), flags: typeCommand}.appendTo(out)
	out, _ = dmaAccess{iova, uint64(len(p))}.AppendBinary(out)
	if cmd == CommandDMAWrite {
		out = append(out, p...)
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	if err := c.commands().send(out); err != nil {
		c.calls.abandon(k, syscall.EIO)
		return 0, syscall.EIO
	}
	select {
	case <-k.done:
	case <-timer.C:
		c.calls.abandon(k, syscall.ETIMEDOUT)
	}
	c.calls.mu.Lock()
	defer c.calls.mu.Unlock()
	if k.errno == 0 && k.count == 0 {
		return 0, syscall.EIO // an answer that moves nothing would go on for ever
	}
	return int(k.count), k.errno
}

// add gives a call an id.
func (s *calls) add(k *call) (uint16, syscall.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, syscall.EFAULT
	}
	if len(s.byID) >= maxCalls {
		return 0, syscall.EBUSY
	}
	for {
		s.lastID++
		if _, used := s.byID[s.lastID]; !used {
			s.byID[s.lastID] = k
			return s.lastID, 0
		}
	}
}

// abandon ends the wait of a caller; its id stays taken. An answer that came
// just before stands.
func (s *calls) abandon(k *call, errno syscall.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k.active {
		k.active, k.reply, k.errno = false, nil, errno
	}
}

// answer gives a reply to the call that it belongs to. false: to none.
func (s *calls) answer(m *message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.byID[m.id]
	if k == nil || k.cmd != m.cmd {
		return false
	}
	delete(s.byID, m.id)
	if k.cmd == CommandDMAWrite {
		// Here, where messages have an order: a report that the client asks
		// for after its answer has the mark. What failed may have begun.
		s.wrote(k.iova, k.want)
	}
	if !k.active {
		return true
	}
	k.active = false
	k.count, k.errno = k.judge(m)
	k.reply = nil
	close(k.done)
	return true
}

// judge takes a reply apart. A count below what was asked is a short transfer.
func (k *call) judge(m *message) (count uint64, errno syscall.Errno) {
	if m.flags&flagError != 0 {
		if m.errno == 0 || m.errno > maxErrno {
			return 0, syscall.EIO
		}
		return 0, syscall.Errno(m.errno)
	}
	if m.tooLong {
		return 0, syscall.EIO
	}
	if k.cmd == CommandDMAWrite {
		// The specification once gave the count 4 bytes, and QEMU up to 10
		// answers with the header alone.
		cur := cursor{b: m.payload}
		switch len(m.payload) {
		case 0:
			return k.want, 0
		case 12:
			cur.u64()
			count = uint64(cur.u32())
		default:
			cur.u64()
			count = cur.u64()
		}
		if cur.short || count > k.want {
			return 0, syscall.EIO
		}
		return count, 0
	}
	var a dmaAccess
	if a.UnmarshalBinary(m.payload) != nil || a.count > k.want || a.count > uint64(len(m.payload)-dmaAccessSize) {
		return 0, syscall.EIO
	}
	return uint64(copy(k.reply[:a.count], m.payload[dmaAccessSize:])), 0
}

// close fails all calls, now and to come.
func (s *calls) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for id, k := range s.byID {
		delete(s.byID, id)
		if k.active {
			k.active, k.reply, k.errno = false, nil, syscall.EFAULT
			close(k.done)
		}
	}
}

// maxErrno is the highest errno that Linux uses (MAX_ERRNO).
const maxErrno = 4095

// goroutineID returns the number of the calling goroutine. The text of a stack
// trace is the one place where the runtime shows it; it costs about 1 us, which
// only DMA by message and the start of a connection pay. A message awaited by
// the goroutine that reads the answers would stall the client until a time-out.
func goroutineID() string {
	var buf [64]byte
	// "goroutine 123 [running]:..."
	b := buf[:runtime.Stack(buf[:], false)]
	b = bytes.TrimPrefix(b, []byte("goroutine "))
	id, _, _ := bytes.Cut(b, []byte(" "))
	return string(id)
}
