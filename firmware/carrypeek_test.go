// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
	"toebox/vdev/abi"
)

// sendToSecond accepts connections, and sends to the second one.
func (p *echoPeer) sendToSecond(l engine.Endpoint) error {
	var all []engine.Endpoint
	for left := streamBytes(0, 100); ; runtime.Gosched() {
		select {
		case <-p.end:
			return nil
		default:
		}
		if c, _ := l.Accept(func(engine.Endpoint) engine.Sink { return ignoreEvents{} }); c != nil {
			all = append(all, c)
		}
		if len(all) < 2 || len(left) == 0 {
			continue
		}
		_, err := all[1].Write(len(left), func(b []byte) error { left = left[copy(b, left):]; return nil })
		if err != nil && !errors.Is(err, engine.ErrWouldBlock) {
			return err
		}
	}
}

// TestCarryOverPeek: an orderly stop shows nothing, and what was to be redirected
// goes nowhere else, whether the destination leaves, too, or stays: it is unread.
func TestCarryOverPeek(t *testing.T) {
	const redirect, skip, peek = abi.FlagRedirect, abi.FlagSkip, abi.FlagPeek
	for _, c := range []struct {
		name    string
		leaves  bool // the destination, which is before the source in the adapter's list
		room    int  // that it has
		flags   abi.Flags
		skip    uint32
		attrs   []uint64
		skipped uint32
	}{
		{name: "redirection to one that leaves", leaves: true, flags: redirect},
		{name: "behind a skip", leaves: true, flags: redirect | skip, skip: 10, skipped: 10},
		{name: "redirection to one that stays", flags: redirect},
		{name: "redirection in time", leaves: true, flags: redirect, room: 40},
		{name: "peek at bytes that wait", flags: peek, attrs: []uint64{notifyBytes, 1000, gatherThreshold, 0}},
		{name: "peek behind a skip", flags: peek | skip, skip: 10, skipped: 10, attrs: []uint64{notifyBytes, 1000, gatherThreshold, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pa, pb := enginetest.Pipe(enginetest.PipeOptions{})
			t.Cleanup(func() { _, _ = pa.Close(), pb.Close() })
			newPeer(t, pb, (*echoPeer).sendToSecond)
			r := newCarryRig(t, pa)
			r.fw.SetPolicyClock(true) // no wait ends
			var carry [2]uint64
			if c.leaves {
				carry[0] = 1
			}
			to := r.dial(abi.AppendSetScalar(nil, 0x025b, carry[0]), 1)
			for range 2 {
				r.post(r.reportBuffer(4096, 0))
			}
			tuples := abi.AppendSetScalar(nil, 0x025b, 1)
			for i := 0; i < len(c.attrs); i += 2 {
				tuples = abi.AppendSetScalar(tuples, abi.Attribute(c.attrs[i]), c.attrs[i+1])
			}
			id := r.dial(tuples, 1+len(c.attrs)/2)
			first, behind := r.buffer(abi.TypeBufferAvailable, id, 50), r.buffer(abi.TypeBufferAvailable, id, 60)
			if first.Flags, first.Offset = c.flags, c.skip; c.flags&redirect != 0 {
				first.Base = to
			}
			var place abi.Fields
			if c.room > 0 {
				place = r.buffer(abi.TypeBufferAvailable, to, c.room)
				r.post(place)
			}
			r.post(first, behind)
			var got []abi.Fields
			if err := r.Wait("the bytes", func() bool {
				f := r.control(abi.TypeConnectionAttr, 1, abi.AppendGet(nil, 0x0284, 8))
				f.Conn = id
				r.post(f)
				for {
					a := r.next()
					if a.Tag == f.Tag {
						return binary.LittleEndian.Uint64(r.bytes(f)[8:]) == 100
					}
					got = append(got, a)
				}
			}); err != nil {
				t.Fatal(err)
			}
			r.fw.Stop()
			if err := r.Wait("the stop", func() bool { got = append(got, r.Pending()...); return r.fw.Stopped() }); err != nil {
				t.Fatal(err)
			}
			got = append(got, r.Pending()...)
			var ended, records, moved int
			for _, f := range got {
				switch {
				case f.Flags&abi.FlagReport != 0 && f.Type == 23:
					for b := r.Chip.Bytes(f.Base, int(f.Length)); len(b) > 0; records++ {
						s := parseRecord(t, b[64:256])
						b = b[256+(s.Unread+63)/64*64:]
						if want := uint32(100-c.room) - c.skipped; s.Conn == id && s.Unread != want {
							t.Errorf("%d bytes unread, want %d", s.Unread, want)
						}
					}
				case f.Conn == 0 && f.Aux == uint16(abi.StatusCancelled): // a report buffer that is not used
				case f.Tag == first.Tag:
					ended++
					want := abi.Fields{
						Type: 17, Flags: abi.FlagFinal, Aux: uint16(abi.StatusCancelled), Tag: first.Tag, Base: first.Base, Conn: id, Offset: c.skipped, Length: uint32(c.room),
					}
					if f != want {
						t.Errorf("first %+v\nwant  %+v", f, want)
					}
				case f.Tag == behind.Tag:
					ended++
					if f.Type != 17 || f.Aux != uint16(abi.StatusCancelled) || f.Offset != 0 {
						t.Errorf("the buffer behind: %+v", f)
					}
				case f.Tag == place.Tag && f.Flags&redirect != 0:
					moved += int(f.Length)
				default:
					t.Errorf("%+v", f)
				}
			}
			if want := 1 + int(carry[0]); ended != 2 || records != want || moved != c.room {
				t.Errorf("%d of 2 requests ended, %d of %d records, %d of %d bytes moved", ended, records, want, moved, c.room)
			}
		})
	}
}
