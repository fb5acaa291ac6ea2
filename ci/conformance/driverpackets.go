// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"errors"
	"net"
	"time"

	"toebox/guestdriver"
)

// TestRX11_Packets: the policies of the driver's datagram endpoints are those of both
// ends of one that serves two families; datagrams are left where they say.
func TestRX11_Packets(t *T) {
	const n = 20_000
	a := t.driver()
	at := t.echoes()
	pc, err := a.ListenPacket("udp", ":0")
	check(t, "listen", err)
	t.Cleanup(func() { pc.Close() })
	p := pc.(*guestdriver.PacketConn)
	end, _ := t.ctx.Deadline()
	check(t, "deadline", p.SetDeadline(end))
	send := guestdriver.SendPolicy{Delay: guestdriver.DelayClass, Count: 7, Bytes: 1 << 20, Age: time.Second}
	schedule := guestdriver.Schedule{Priority: 5, Class: 9, Starvation: time.Second}
	check(t, "set policies", errors.Join(p.SetSendPolicy(send), p.SetSchedule(schedule), p.SetExpedited(true)))
	t.numbers(a, p.ID(), "policies", map[uint16]uint64{
		attrDelayCriteria: 16, attrDelayCount: 7, attrDelayBytes: 1 << 20, attrDelayAge: 1000 * ms, attrDelayDynamic: 0,
		attrASAPMode: 0, attrKeepSends: 0, 0x0213: 5, 0x0214: 9, 0x0226: 1000 * ms, expedited: 1,
	})
	got, err1 := p.SendPolicy()
	turn, err2 := p.Schedule()
	on, err3 := p.Expedited()
	place, err4 := p.Placement()
	check(t, "policies", errors.Join(err1, err2, err3, err4))
	want(t, "policy of sends", got, send)
	want(t, "schedule", turn, schedule)
	want(t, "expedited", on, true)
	want(t, "placement by default", place, guestdriver.Placement{Budget: 1 << 20})
	b := make([]byte, 1<<16)
	for round, went := range []uint64{0, 24 + n} { // with the header
		if round == 1 {
			place.Stores = guestdriver.StoresNonTemporal
			check(t, "set the placement", p.SetPlacement(place))
			t.numbers(a, p.ID(), "placement", map[uint16]uint64{placement: 1, placementBudget: 1 << 20})
		}
		before := t.counterOf(a, ctrNonTemporal)
		_, err := p.WriteTo(pattern(n, uint64(round)), net.UDPAddrFromAddrPort(at))
		check(t, "write to", err)
		k, from, err := p.ReadFrom(b)
		check(t, "read from", err)
		if !bytes.Equal(b[:k], pattern(n, uint64(round))) || from.String() != at.String() {
			t.Errorf("read %d bytes of %d from %v", k, n, from)
		}
		want(t, "nontemporal_bytes", t.counterOf(a, ctrNonTemporal)-before, went)
	}
	check(t, "close", p.Close())
	if err := p.SetSchedule(schedule); !errors.Is(err, net.ErrClosed) {
		t.Errorf("set the schedule after close: %v", err)
	}
}
