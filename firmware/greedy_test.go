// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"errors"
	"testing"

	"toebox/firmware"
	"toebox/firmware/engine"
	"toebox/vdev/abi"
)

// greedyEngine makes endpoints whose Write asks for one byte more than it is
// offered, and fails when it gets none.
type greedyEngine struct{ engine.Engine }

func (e *greedyEngine) Open(p engine.Protocol, v6 bool, s engine.Sink) (engine.Endpoint, error) {
	ep, err := e.Engine.Open(p, v6, s)
	return &greedy{ep}, err
}

type greedy struct{ engine.Endpoint }

func (g *greedy) Write(n int, fill func([]byte) error) (int, error) {
	n, err := g.Endpoint.Write(n, fill)
	return n, errors.Join(err, fill(make([]byte, 1)))
}

// TestGreedyEngine: an engine that asks for more than there is to send gets an
// error. What it may have missed is a gap: nothing more is sent, and the end is
// a reset.
func TestGreedyEngine(t *testing.T) {
	r := newRig(t, 4, func(c *firmware.Config) { c.Engine = &greedyEngine{c.Engine} })
	id, ep := r.connect()
	f := r.buffer(abi.TypeBufferSend, id, 100)
	r.post(f)
	r.expect(sendDone(f, abi.StatusAborted, 0))
	if got := ep.Sent(); string(got) != string(r.bytes(f)) {
		t.Errorf("%d bytes were sent", len(got))
	}
	f = r.buffer(abi.TypeBufferSend, id, 100)
	r.post(f)
	r.expect(sendDone(f, abi.StatusAborted, 0))
	end := abi.Fields{Type: abi.TypeTermination, Tag: r.Tag(), Conn: id, Length: abi.TerminateGraceful}
	r.post(end)
	r.expect(abi.Fields{Type: abi.TypeTerminated, Flags: abi.FlagFinal, Tag: end.Tag, Conn: id, Length: abi.EndedHostReset})
	if len(ep.Sent()) != 100 || ep.FINSent() {
		t.Errorf("%d bytes sent behind a gap, FIN %t", len(ep.Sent()), ep.FINSent())
	}
	r.wantCounter(abi.CounterPayloadBytesRead, 100)
}
