// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"toebox/vfio-user/vfiousertest"
)

// TestAnsweredOnce: a request that has waited for the server that has it now is
// answered in its stead when the client's patience ends, and only so.
func TestAnsweredOnce(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	client, _ := r.connect(f)
	second := f.peer()
	(<-f.made).kill()
	eventually(t, "the connection to end", func() bool { return !r.k.Stats().Ready })
	read := vfiousertest.Message{ID: 100, Command: 9, Payload: unhex(t, "1000000000000000 00000000 04000000")}
	client.Send(read.Bytes())
	eventually(t, "the read to be held", func() bool { return r.k.Stats().Held == 1 })
	held := time.Now()
	answers(t, second, agreed)
	late := second.Recv()
	if late.Command != 9 || !bytes.Equal(late.Payload, read.Payload) {
		t.Fatalf("the new server gets %+v", late)
	}
	r.session().overdue(held)
	if m := client.Recv(); m.ID != 100 || !bytes.Equal(m.Payload[16:], []byte{0xff, 0xff, 0xff, 0xff}) {
		t.Errorf("%+v", m)
	}
	answer(second, late, append(slices.Clone(read.Payload), 1, 2, 3, 4))
	read.ID = 101
	client.Send(read.Bytes())
	answer(second, second.Recv(), append(slices.Clone(read.Payload), 5, 6, 7, 8))
	if m := client.Recv(); m.ID != 101 || !bytes.Equal(m.Payload[16:], []byte{5, 6, 7, 8}) {
		t.Errorf("%+v", m)
	}
	if s := r.k.Stats(); s.InStead != 1 || s.Starts != 2 {
		t.Errorf("%+v", s)
	}
}
