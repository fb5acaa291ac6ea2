// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"testing"
	"time"
)

// TestAbandon has callers stay away from tables that are gone: here there are none.
func TestAbandon(t *testing.T) {
	ln := &lane{a: &Adapter{}}
	ln.mode.Store(uint32(ModeHybrid))
	ln.spin.Store(int64(time.Minute))
	ln.at.spin, ln.at.taken, ln.at.asleep = time.Minute, true, 1
	attends := vigil{ln: ln, on: true}
	ln.at.abandon()
	attends.end()
	if ln.at.taken || ln.at.lapsing {
		t.Errorf("attended: %t, asks for interrupts later: %t", ln.at.taken, ln.at.lapsing)
	}
	ln.at.lapsing = true
	var comes vigil
	if comes.look(ln, nil) {
		t.Error("a caller attends")
	}
	comes.end()
	if ln.at.asleep != 1 {
		t.Errorf("%d callers sleep, want 1", ln.at.asleep)
	}
	ln.lapsed()
}
