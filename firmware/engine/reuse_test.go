// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"errors"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// A listener comes back to its port while a connection it accepted lingers,
// here in FIN-WAIT-2 since the client does not close; a second one at the same
// time does not.
func TestListenAgain(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	l := listen(t, a, false, 80, 4)
	c := connect(t, b, false, addrPort(a.v4, 80))
	s := accept(t, l)
	s.Close()
	if err := ending(t, c); !errors.Is(err, engine.ErrEndOfStream) {
		t.Fatalf("the client read %v", err)
	}
	l.Close()
	l = listen(t, a, false, 80, 4)
	p := open(t, a, engine.TCP, false)
	if err := p.Bind(addrPort(a.v4, 80)); !errors.Is(err, engine.ErrAddressInUse) {
		t.Errorf("bind beside a listener: %v", err)
	}
	connect(t, b, false, addrPort(a.v4, 80))
	accept(t, l)
}

// A connection knows its MSS before anything was sent on it.
func TestMSSAtOnce(t *testing.T) {
	a, b := twoEngines(t, enginetest.PipeOptions{}, nil)
	c, s := connected(t, a, b)
	for _, p := range []peer{c, s} {
		if mss := p.Info().MSS; mss < 536 || mss > 65495 {
			t.Errorf("MSS is %d", mss)
		}
	}
}
