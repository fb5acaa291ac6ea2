// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"fmt"
	"slices"
	"syscall"
	"time"

	vfiouser "toebox/vfio-user"
)

// request is one of the client's from its arrival to its answer, or one of the
// keeper's own. It is under session.mu once it is held or pending.
type request struct {
	seq    uint64 // order of arrival
	id     uint16 // the client's
	cmd    vfiouser.Command
	silent bool // the client wants no reply
	posted bool // nor does the keeper
	// answered is one that was answered in the stead of the server that has it.
	answered bool
	arrived  time.Time
	sent     time.Time // to the server that has it
	payload  []byte    // a copy, in small if it fits
	small    [24]byte

	access access  // of a region
	dma    dmaMap  // of DMA_MAP; owns a reference to its file
	unmap  unmap   // of DMA_UNMAP
	irq    irqSet  // of SET_IRQS
	fds    []int   // of SET_IRQS; owned
	own    *result // of the keeper's own; nil: the client's
}

// result is the answer to one of the keeper's own requests.
type result struct {
	payload []byte
	err     error
	done    func(*result)
}

// stateful reports whether the keeper itself can do what r asks when there is
// no server, because that is state which it puts back.
func (r *request) stateful() bool {
	switch r.cmd {
	case vfiouser.CommandDMAMap, vfiouser.CommandDMAUnmap, vfiouser.CommandSetIRQs, vfiouser.CommandReset:
		return true
	}
	return false
}

// write reports whether r writes to a region.
func (r *request) write() bool {
	return r.cmd == vfiouser.CommandRegionWrite || r.cmd == vfiouser.CommandRegionWriteMulti
}

// again reports whether r may be given to a second server when the first has
// died over it. Writes to regions are answered and lost: to a device that has
// just started, what was meant for the one before is of no use.
func (r *request) again() bool {
	switch r.cmd {
	case vfiouser.CommandRegionWrite, vfiouser.CommandRegionWriteMulti,
		vfiouser.CommandMigrationDataRead, vfiouser.CommandMigrationDataWrite:
		return false
	case vfiouser.CommandFeature:
		return len(r.payload) >= featureSize && native32(r.payload, 4)&featureSet == 0
	}
	return true
}

// fd returns the descriptors that go with the request, still owned by it.
func (r *request) lent() []int {
	if r.dma.file != nil {
		return []int{r.dma.file.fd}
	}
	return r.fds
}

// parse makes a request of a message, and takes over its descriptors or closes
// them. The session's mutex is held.
func (s *session) parse(m *vfiouser.Message) (r *request, err error) {
	defer func() {
		closeFDs(m.FDs)
		if err != nil && r != nil {
			s.dropLocked(r)
		}
	}()
	switch {
	case m.Err != nil:
		return nil, fmt.Errorf("message that is not whole: %w", tooBig(m.Err))
	case uint64(len(m.FDs)) > s.agreed.fds:
		return nil, fmt.Errorf("%d file descriptors: %w", len(m.FDs), syscall.EINVAL)
	case len(m.FDs) > 0 && m.Command != vfiouser.CommandDMAMap && m.Command != vfiouser.CommandSetIRQs:
		return nil, fmt.Errorf("%d file descriptors with %v: %w", len(m.FDs), m.Command, syscall.EINVAL)
	}
	s.seq++
	r = &request{
		seq: s.seq, id: m.ID, cmd: m.Command, silent: m.Flags&vfiouser.MessageNoReply != 0,
		arrived: s.now,
	}
	r.payload = append(r.small[:0], m.Payload...)
	switch m.Command {
	case vfiouser.CommandDMAMap:
		if r.dma, err = parseMap(m.Payload, len(m.FDs)); err != nil || len(m.FDs) == 0 {
			return r, err
		}
		fd := m.FDs[0]
		m.FDs[0] = -1
		r.dma.file, err = s.memory.files.take(fd)
		return r, err
	case vfiouser.CommandDMAUnmap:
		r.unmap, err = parseUnmap(m.Payload)
		return r, err
	case vfiouser.CommandSetIRQs:
		if r.irq, err = parseIRQSet(m.Payload, len(m.FDs), s.irqs); err != nil {
			return r, err
		}
		r.fds = slices.Clone(m.FDs)
		for i := range m.FDs {
			m.FDs[i] = -1
		}
		return r, nil
	case vfiouser.CommandRegionRead, vfiouser.CommandRegionWrite:
		return r, s.parseAccess(r, m.Payload)
	case vfiouser.CommandRegionWriteMulti:
		r.posted = r.silent
		return r, s.parseMulti(m.Payload)
	case vfiouser.CommandReset:
		s.config.reset()
	}
	return r, nil
}

// tooBig is the errno for a message that came in damaged.
func tooBig(err error) error {
	if err == syscall.EMSGSIZE {
		return syscall.E2BIG
	}
	return err
}

func (s *session) parseAccess(r *request, p []byte) error {
	a, ok := parseAccess(p)
	r.access = a
	switch {
	case !ok:
		return fmt.Errorf("%v in %d bytes: %w", r.cmd, len(p), syscall.EINVAL)
	case uint64(a.count) > s.agreed.transfer:
		return fmt.Errorf("%v of %d bytes: %w", r.cmd, a.count, syscall.E2BIG)
	case r.cmd == vfiouser.CommandRegionRead:
		r.silent = false // a read without an answer asks for nothing
		return nil
	case uint64(a.count) != uint64(len(p)-accessSize):
		return fmt.Errorf("write of %d bytes with %d: %w", a.count, len(p)-accessSize, syscall.EINVAL)
	}
	r.posted = r.silent
	if a.region == regionConfig {
		s.config.wrote(a.offset, p[accessSize:])
	}
	return nil
}

func (s *session) parseMulti(p []byte) error {
	if len(p) < 8 || native64(p, 0) > uint64(len(p)) || native64(p, 0)*multiEntrySize != uint64(len(p)-8) {
		return fmt.Errorf("writes in %d bytes: %w", len(p), syscall.EINVAL)
	}
	for p = p[8:]; len(p) > 0; p = p[multiEntrySize:] {
		if a, _ := parseAccess(p); a.region == regionConfig && a.count <= 8 {
			s.config.wrote(a.offset, p[accessSize:][:a.count])
		}
	}
	return nil
}

// dropLocked gives back what a request owns.
func (s *session) dropLocked(r *request) {
	s.memory.files.drop(r.dma.file)
	r.dma.file = nil
	closeFDs(r.fds)
	r.fds = nil
}

// localLocked does what a stateful request asks. The payload is the answer's.
func (s *session) localLocked(r *request) (payload []byte, err error) {
	restoring := s.state == stateRestoring
	switch r.cmd {
	case vfiouser.CommandDMAMap:
		m := r.dma
		r.dma.file = nil
		if uint64(s.memory.maps.count) >= s.agreed.maps && s.memory.maps.find(m.addr, m.last) == nil {
			s.memory.files.drop(m.file)
			return nil, fmt.Errorf("%d maps: %w", s.memory.maps.count, syscall.ENOSPC)
		}
		if restoring && m.file != nil {
			m.file.refs++ // for the change
		}
		if err := s.memory.add(m); err != nil || !restoring {
			if restoring {
				s.memory.files.drop(m.file)
			}
			return nil, err
		}
		s.changeLocked(change{dma: m})
	case vfiouser.CommandDMAUnmap:
		n, err := s.memory.unmap(r.unmap)
		if err != nil {
			return nil, err
		}
		if restoring {
			s.changeLocked(change{unmap: &r.unmap})
		}
		return r.unmap.append(nil, n), nil
	case vfiouser.CommandSetIRQs:
		s.irqs[r.irq.index].apply(r.irq, r.payload[irqSetSize:], r.fds)
		closeFDs(r.fds)
		r.fds = nil
		if restoring {
			s.changeLocked(change{irq: true, index: r.irq.index})
		}
	case vfiouser.CommandReset:
		// The server that comes has not done anything yet; nor shall it do
		// what was asked of it before.
		held := s.held
		s.held, s.heldBytes = nil, 0
		for _, h := range held {
			if h.write() {
				s.inSteadLocked(h)
			} else {
				s.holdLocked(h)
			}
		}
	}
	return nil, nil
}

// inSteadLocked answers a request as if the device were not there: reads get
// what is known of configuration space, or all ones; writes vanish.
func (s *session) inSteadLocked(r *request) {
	s.k.stats.inStead.Add(1)
	switch {
	case r.cmd == vfiouser.CommandRegionRead:
		p := r.access.append(make([]byte, 0, accessSize+int(r.access.count)))
		p = p[:accessSize+int(r.access.count)]
		data := p[accessSize:]
		if r.access.region == regionConfig {
			s.config.answer(r.access.offset, data)
		} else {
			for i := range data {
				data[i] = 0xff
			}
		}
		s.reply(r, p)
	case r.cmd == vfiouser.CommandRegionWrite:
		s.k.stats.dropped.Add(1)
		s.reply(r, r.access.append(nil))
	case r.cmd == vfiouser.CommandRegionWriteMulti:
		s.k.stats.dropped.Add(native64(r.payload, 0))
		s.reply(r, r.payload[:8])
	default:
		s.replyError(r, fmt.Errorf("%v without a server: %w", r.cmd, syscall.EIO))
	}
	s.dropLocked(r)
}
