// SPDX-License-Identifier: Apache-2.0

package enginetest_test

import (
	"bytes"
	"testing"

	"toebox/firmware/engine"
	"toebox/firmware/engine/enginetest"
)

// through sends n numbered frames of 200 bytes through a pipe and returns the
// numbers that arrive, up to a last frame that is never lost: it is short.
func through(t *testing.T, o enginetest.PipeOptions, n int) (got []int) {
	t.Helper()
	a, b := enginetest.Pipe(o)
	end := make(chan struct{})
	b.Attach(func(frames []engine.Frame) {
		for _, f := range frames {
			switch {
			case f.Len() < 100:
				close(end)
			case f.GSOSize != uint16(f.Data[0][0]) || !f.NeedsChecksum || !bytes.Equal(f.Data[0][1:], make([]byte, 199)):
				t.Errorf("frame %+v", f)
			default:
				got = append(got, int(f.Data[0][0]))
			}
		}
	})
	for i := range n {
		f := engine.Frame{Data: [][]byte{{byte(i)}, make([]byte, 199)}, GSOSize: uint16(i), NeedsChecksum: true}
		if a.Transmit([]engine.Frame{f}) != 1 {
			t.Fatal("not taken")
		}
	}
	a.Transmit([]engine.Frame{{Data: [][]byte{{0}}}})
	<-end
	_ = b.Close()
	_ = a.Close()
	if lost := int(b.Dropped()); lost != n-len(got) && o.Reorder == 0 {
		t.Errorf("%d of %d arrived, %d counted as lost", len(got), n, lost)
	}
	a.Transmit([]engine.Frame{{Data: [][]byte{{0}}}}) // to nobody
	return got
}

func TestPipe(t *testing.T) {
	const n = 200
	got := through(t, enginetest.PipeOptions{}, n)
	for i := range got {
		if got[i] != i {
			t.Fatalf("%v", got)
		}
	}
	if len(got) != n {
		t.Errorf("%d of %d arrived", len(got), n)
	}
	lossy := enginetest.PipeOptions{Loss: 0.1, Seed: 1}
	first, again := through(t, lossy, n), through(t, lossy, n)
	if len(first) == n || len(first) < n/2 || len(again) != len(first) {
		t.Errorf("%d, then %d of %d arrived", len(first), len(again), n)
	}
	got = through(t, enginetest.PipeOptions{Reorder: 0.1, Seed: 1}, n)
	late := 0
	for i := 1; i < len(got); i++ {
		if got[i] < got[i-1] {
			late++
		}
	}
	if len(got) != n || late == 0 || late > n/2 {
		t.Errorf("%d of %d arrived, %d late", len(got), n, late)
	}
	got = through(t, enginetest.PipeOptions{Drop: func(port int, f []byte) bool { return port == 0 && len(f) == 200 && f[0] == 7 }}, 10)
	if len(got) != 9 || got[7] != 8 {
		t.Errorf("%v", got)
	}
}
