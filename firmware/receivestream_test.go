// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"toebox/vdev/abi"
)

// streamRun is a stream under policies that change, into buffers of all kinds.
type streamRun struct {
	*simulation
	rng    *rand.Rand
	filled map[uint32]uint32 // bytes of each buffer
}

func streamByte(i int) byte { return byte(i*131 + i>>8*17) }

// TestReceiveStream plays random arrivals, posts, cancellations, attributes and
// times, by seed: no byte is lost, doubled or out of place, and none waits longer
// than NOTIFY_MAX while there is a buffer for it.
func TestReceiveStream(t *testing.T) {
	seeds := uint64(300)
	if raceEnabled || testing.Short() {
		seeds = 60
	}
	for seed := range seeds {
		w := workload{name: "random", next: func(int) (uint64, int, bool) { return 0, 0, false }}
		s := streamRun{
			simulation: newSimulation(t, &w, []uint64{linkTransferSize, 4096, gatherThreshold, 6000, combine, seed % 2}),
			rng:        rand.New(rand.NewPCG(seed, 1)), filled: map[uint32]uint32{},
		}
		for range 200 {
			s.move()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		s.finish()
		s.close()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// move does one thing, and looks what came of it.
func (s *streamRun) move() {
	switch k := s.rng.IntN(20); {
	case k < 8:
		s.arrive(1 + s.rng.IntN([]int{10, 1460, 9000}[s.rng.IntN(3)]))
	case k < 11:
		s.postSome()
	case k < 12:
		if tags := slices.Sorted(maps.Keys(s.buffers)); len(tags) > 0 {
			tag := tags[s.rng.IntN(len(tags))]
			s.post(abi.Fields{Type: abi.TypeCancellation, Tag: s.host.Tag(), Conn: s.buffers[tag].Conn, Offset: tag})
		}
	case k < 14:
		list := []uint64{notifyTime, 300 * us, notifyTime, 0, notifyBytes, 5000, notifyBytes, 0, notifyDynamic, 15, notifyDynamic, 0, expedited, 1,
			expedited, 0, gatherThreshold, 0, gatherThreshold, 6000}
		i := 2 * s.rng.IntN(len(list)/2)
		tuples, n := scalars(list[i], list[i+1])
		base := s.chip.Alloc(len(tuples), 8)
		copy(s.chip.Bytes(base, len(tuples)), tuples)
		s.post(abi.Fields{Type: abi.TypeConnectionAttr, Tag: s.host.Tag(), Aux: uint16(n), Base: base, Length: uint32(len(tuples)), Conn: s.conn})
	default:
		ns := uint64(1 + s.rng.IntN(int([]uint64{us, 100 * us, ms}[s.rng.IntN(3)])))
		for ns > 0 {
			step := ns
			if due, ok := s.q.Due(); ok && due > s.now {
				step = min(step, due-s.now)
			}
			s.fw.StepPolicyClock(step)
			s.now += step
			ns -= step
			s.look()
		}
	}
	s.look()
}

func (s *streamRun) arrive(n int) {
	b := make([]byte, n)
	for i := range b {
		b[i] = streamByte(s.sent + i)
	}
	s.ep.Deliver(b)
	s.came = append(s.came, step{s.now, n})
	s.sent += n
}

// postSome posts up to four buffers of a kind, one behind the other.
func (s *streamRun) postSome() {
	conn := s.conn * uint64(s.rng.IntN(3)&1)
	size := 1 + s.rng.IntN([]int{100, 3000, 20000}[s.rng.IntN(3)])
	n := 1 + s.rng.IntN(4)
	base := s.chip.Alloc(n*size, 1)
	var flags abi.Flags
	if conn != 0 && s.rng.IntN(4) == 0 {
		flags = abi.FlagOnce
	}
	for i := range n {
		f := abi.Fields{
			Type: abi.TypeBufferAvailable, Flags: flags, Tag: s.host.Tag(), Conn: conn, Base: base + uint64(i*size), Length: uint32(size),
		}
		s.buffers[f.Tag] = posted{f, 0}
		s.post(f)
	}
}

// look lets the adapter act and checks what it says.
func (s *streamRun) look() {
	s.t.Helper()
	s.passes()
	for f, ok := s.host.Take(); ok; f, ok = s.host.Take() {
		if f.Aux != 0 && f.Type != abi.TypeBufferDone && f.Type != abi.TypeCancelled {
			s.t.Errorf("unexpected %+v", f)
		}
		switch f.Type {
		case abi.TypeBufferDone:
			delete(s.buffers, f.Tag)
		case abi.TypeBufferReceive:
			s.bytes(f)
		}
	}
	if len(s.came) > 0 && s.now-s.came[0].at > ms {
		for tag, b := range s.buffers {
			s.t.Errorf("bytes wait for %d ns, and there is buffer %d: %+v", s.now-s.came[0].at, tag, b.Fields)
			return
		}
	}
}

// bytes checks the bytes of a response, combined or not.
func (s *streamRun) bytes(f abi.Fields) {
	tags := []uint32{f.Tag}
	for tag := f.Tag; s.buffers[tag].Base != f.Base; {
		tag--
		if _, ok := s.buffers[tag]; !ok {
			s.t.Errorf("a response that covers what was not posted: %+v", f)
			return
		}
		tags = append([]uint32{tag}, tags...)
	}
	if (len(tags) > 1) != (f.Flags&abi.FlagCombined != 0) {
		s.t.Errorf("%d buffers: %+v", len(tags), f)
	}
	left := f.Length
	for i, tag := range tags {
		b := s.buffers[tag]
		n, offset := left, s.filled[tag]
		if i < len(tags)-1 {
			n = b.Length - offset
		}
		if i == 0 && f.Offset != offset || n == 0 || offset+n > b.Length {
			s.t.Errorf("%d bytes at %d of %+v: %+v", n, offset, b.Fields, f)
			return
		}
		for k, v := range s.chip.Bytes(b.Base+uint64(offset), int(n)) {
			if v != streamByte(s.told+k) {
				s.t.Errorf("byte %d of the stream is another, in %+v", s.told+k, f)
				return
			}
		}
		s.told += int(n)
		for k := int(n); k > 0; {
			c := &s.came[0]
			m := min(k, c.n)
			if c.n -= m; c.n == 0 {
				s.came = s.came[1:]
			}
			k -= m
		}
		left -= n
		s.filled[tag] += n
		if f.Flags&abi.FlagFinal != 0 {
			delete(s.buffers, tag)
		}
	}
}

// finish ends the stream: everything is told, whatever waits.
func (s *streamRun) finish() {
	s.t.Helper()
	s.ep.DeliverFIN()
	for i := 0; s.told < s.sent && i < 1000 && !s.t.Failed(); i++ {
		s.postSome()
		s.look()
	}
	if s.told != s.sent {
		s.t.Errorf("told of %d bytes of %d", s.told, s.sent)
	}
}
