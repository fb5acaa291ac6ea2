// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"io"
	"testing"

	"toebox/guestdriver"
)

// TestAlign: Write and Read use memory as it is if it is registered, long enough and
// at an address that suits, else by a copy, and the statistics say which.
func TestAlign(t *testing.T) {
	const n = 1000
	a, _ := open(t, guestdriver.Options{ZeroCopy: n, Align: 64, NoReadAhead: true})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	out, in := region(t, a, 2*n), region(t, a, 2*n)
	for _, k := range []struct {
		name   string
		p, to  []byte
		direct uint64
	}{
		{"aligned", out.Bytes()[64:][:n], in.Bytes()[128:][:n], 1},
		{"at an odd address", out.Bytes()[65:][:n], in.Bytes()[127:][:n], 0},
		{"too short", out.Bytes()[64:][:n-1], in.Bytes()[128:][:n-1], 0},
		{"not registered", make([]byte, n), make([]byte, n), 0},
	} {
		before := a.Stats()
		if m, err := c.Write(k.p); m != len(k.p) || err != nil {
			t.Fatalf("%s: wrote %d, %v", k.name, m, err)
		}
		if m, err := io.ReadFull(far, k.to); err != nil || !bytes.Equal(k.to, k.p) {
			t.Fatalf("%s: read %d, %v", k.name, m, err)
		}
		s := a.Stats()
		wrote, copied := s.DirectWrites-before.DirectWrites, s.BufferedWrites-before.BufferedWrites
		if wrote != k.direct || copied != 1-k.direct || s.DirectReads-before.DirectReads != k.direct ||
			s.HostCopyBytes-before.HostCopyBytes != 2*(1-k.direct)*uint64(len(k.p)) {
			t.Errorf("%s: %d writes direct, %d copied: %+v", k.name, wrote, copied, s)
		}
	}
}
