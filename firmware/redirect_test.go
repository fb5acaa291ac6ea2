// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

// TestRedirectTrace plays buffers, peeks, skips and redirections among a few
// connections, which come, end and change attributes, by seed: each request has
// one terminal response, each byte that arrived is delivered or skipped once or
// waits, and peeks and buffers have the bytes of their place.
func TestRedirectTrace(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 13))
			r := newRig(t, 6)
			r.fw.SetPolicyClock(true)
			type link struct {
				id   uint64
				ep   *enginetest.Endpoint
				came int
				open bool
			}
			var links []*link
			finals := map[uint32]int{}
			redirections := map[uint32]bool{}
			moved, said := 0, 0 // bytes in buffers of others, and by redirections
			told := func(fs []abi.Fields) {
				for _, f := range fs {
					if f.Tag != 0 && f.Flags&abi.FlagFinal != 0 {
						finals[f.Tag]++
					}
					switch {
					case f.Type == abi.TypeBufferReceive && f.Flags&abi.FlagRedirect != 0:
						moved += int(f.Length)
					case redirections[f.Tag]:
						said += int(f.Length)
					}
					if f.Type == abi.TypeBufferReceive && f.Flags&abi.FlagPeek != 0 && f.Flags&abi.FlagFinal == 0 {
						t.Errorf("a peek that is not final: %+v", f)
					}
				}
			}
			begin := func() {
				l := &link{open: true}
				l.id, l.ep = r.connect()
				links = append(links, l)
			}
			post := func(f abi.Fields) {
				finals[f.Tag] += 0
				r.post(f)
			}
			for range 4 {
				begin()
			}
			for range 300 {
				l := links[rng.IntN(len(links))]
				switch k := rng.IntN(20); {
				case k < 6:
					f := r.buffer(abi.TypeBufferAvailable, l.id, 1+rng.IntN(40))
					f.Flags = []abi.Flags{0, 0, abi.FlagOnce, abi.FlagPeek, abi.FlagSkip, abi.FlagPeek | abi.FlagSkip}[rng.IntN(6)]
					if f.Flags&abi.FlagSkip != 0 {
						f.Offset = uint32(rng.IntN(30))
					}
					if f.Flags == 0 && rng.IntN(3) == 0 {
						f.Aux = 0x0100 | uint16(rng.IntN(4))
					}
					post(f)
				case k < 9:
					f := abi.Fields{
						Type: abi.TypeBufferAvailable, Flags: abi.FlagRedirect, Tag: r.Tag(),
						Conn: l.id, Base: links[rng.IntN(len(links))].id, Length: uint32(1 + rng.IntN(60)),
					}
					if rng.IntN(2) == 0 {
						f.Flags, f.Offset = f.Flags|abi.FlagSkip, uint32(rng.IntN(30))
					}
					redirections[f.Tag] = true
					post(f)
				case k < 10:
					post(r.buffer(abi.TypeBufferAvailable, 0, 1+rng.IntN(40)))
				case k < 11:
					f := r.buffer(abi.TypeBufferAvailable, 1<<59|uint64(l.ep.Info().Local.Port())<<32, 1+rng.IntN(40))
					f.Flags = abi.FlagGroup
					post(f)
				case k < 15 && l.open:
					n := 1 + rng.IntN(80)
					l.ep.Deliver(streamBytes(uint64(l.came), n))
					l.came += n
				case k < 16:
					r.fw.StepPolicyClock(uint64(rng.IntN(4)) * ms)
				case k < 17 && l.open:
					attr := [][2]uint64{{peekAttr, uint64(rng.IntN(2) * rng.IntN(20))}, {peekWait, uint64(rng.IntN(6)) * ms}, {skipAttr, uint64(rng.IntN(2) * rng.IntN(9))},
						{0x0232, uint64(rng.IntN(2))}, {notifyBytes, uint64(rng.IntN(2) * 50)}, {placement, uint64(rng.IntN(4))}, {0x0239, uint64(rng.IntN(8) / 7)}}[rng.IntN(7)]
					tuples, n := scalars(attr[0], attr[1])
					f := r.control(abi.TypeConnectionAttr, n, tuples)
					f.Conn = l.id
					post(f)
				case k < 18 && len(finals) > 0:
					tag := uint32(1 + rng.IntN(len(finals)+8))
					post(abi.Fields{Type: abi.TypeCancellation, Tag: r.Tag(), Conn: l.id, Offset: tag})
				case k < 19 && rng.IntN(6) == 0 && l.open:
					l.open = false
					post(abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: l.id, Length: uint32(rng.IntN(4))})
				case k < 20 && rng.IntN(8) == 0 && l.open:
					l.open = false
					if rng.IntN(2) == 0 {
						l.ep.DeliverFIN()
					} else {
						l.ep.Reset()
					}
				case len(links) < 12 && rng.IntN(8) == 0:
					told(r.settle())
					begin()
				}
				told(r.settle())
				if l.open {
					f := r.control(abi.TypeConnectionAttr, 1, abi.AppendGet(nil, abi.AttrBytesDelivered, 8))
					f.Conn = l.id
					post(f)
					told(r.settle())
					b := r.Chip.Bytes(f.Base, int(f.Length))
					got := binary.LittleEndian.Uint64(b[8:])
					if s, _ := abi.TupleResult(b); s == abi.StatusOK && int(got)+l.ep.Unread() != l.came {
						t.Fatalf("%d bytes came, %d are delivered, %d wait", l.came, got, l.ep.Unread())
					}
				}
			}
			for _, l := range links {
				post(abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: l.id, Length: abi.TerminateAbort})
			}
			told(r.settle())
			r.fw.Command(0, abi.QueueDrain, r.Config)
			if err := r.State(abi.QueueDrained); err != nil {
				t.Fatal(err)
			}
			told(r.Pending())
			if moved != said || moved == 0 {
				t.Errorf("%d bytes went to buffers of others, redirections say %d", moved, said)
			}
			for tag, n := range finals {
				if n != 1 && tag != 0 {
					t.Errorf("%d terminal responses of tag %d", n, tag)
				}
			}
		})
	}
}
