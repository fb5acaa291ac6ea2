// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"bytes"
	"encoding"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// coder is what all payloads are.
type coder interface {
	AppendBinary([]byte) ([]byte, error)
	encoding.BinaryUnmarshaler
}

// TestMessages encodes every payload to literal bytes and back, and refuses
// each that is a byte short.
func TestMessages(t *testing.T) {
	for _, tt := range []struct {
		m    coder
		size int
		want []byte
	}{
		{&versionPrefix{1, 2}, 4, []byte{1, 0, 2, 0}},
		{&dmaMap{1, 2, 3, 4, 5}, 32, []byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0}},
		{&dmaUnmap{1, 2, 3, 4}, 24, []byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0}},
		{&deviceInfo{1, 2, 3, 4}, 16, []byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0}},
		{&regionInfo{1, 2, 3, 4, 5, 6}, 32, []byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0}},
		{&irqInfo{1, 2, 3, 4}, 16, []byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0}},
		{&irqSet{1, 2, 3, 4, 5}, 20, []byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0}},
		{&regionAccess{1, 2, 3}, 16, []byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0}},
		{&featureHead{1, 2}, 8, []byte{1, 0, 0, 0, 2, 0, 0, 0}},
		{&featureState{1, 2}, 8, []byte{1, 0, 0, 0, 2, 0, 0, 0}},
		{&logControl{1, 2, 3}, 16, []byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0}},
		{&logReport{1, 2, 3}, 24, []byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0}},
		{&dirtyBitmap{1, 2}, 16, []byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}},
		{&stateData{1, 2}, 8, []byte{1, 0, 0, 0, 2, 0, 0, 0}},
		{&precopyInfo{1, 2, 3, 4}, 24, []byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0}},
		{&dmaAccess{1, 2}, 16, []byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}},
	} {
		got, err := tt.m.AppendBinary([]byte{0xee})
		if err != nil || got[0] != 0xee || !bytes.Equal(got[1:], tt.want) || len(tt.want) != tt.size {
			t.Errorf("%T: %x, %v; want %x", tt.m, got, err, tt.want)
		}
		back := reflect.New(reflect.TypeOf(tt.m).Elem()).Interface().(coder)
		if err := back.UnmarshalBinary(append(tt.want, 0xff)); err != nil || !reflect.DeepEqual(back, tt.m) {
			t.Errorf("%T came back as %+v, %v", tt.m, back, err)
		}
		for n := range tt.want {
			if back.UnmarshalBinary(tt.want[:n]) == nil {
				t.Errorf("%T accepts %d bytes", tt.m, n)
			}
		}
	}
	h := header{id: 0x0201, cmd: 0x0403, size: 0x08070605, flags: 0x0c0b0a09, errno: 0x100f0e0d}
	b := h.appendTo(nil)
	if want := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}; !bytes.Equal(b, want) || parseHeader(b) != h {
		t.Errorf("header %x is %+v", b, parseHeader(b))
	}
}

// TestText checks names and errors as people read them.
func TestText(t *testing.T) {
	names := []string{"VERSION", "DMA_MAP", "DMA_UNMAP", "DEVICE_GET_INFO", "DEVICE_GET_REGION_INFO", "DEVICE_GET_REGION_IO_FDS",
		"DEVICE_GET_IRQ_INFO", "DEVICE_SET_IRQS", "REGION_READ", "REGION_WRITE", "DMA_READ", "DMA_WRITE", "DEVICE_RESET", "DIRTY_PAGES",
		"REGION_WRITE_MULTI", "DEVICE_FEATURE", "MIG_DATA_READ", "MIG_DATA_WRITE", "GET_PRECOPY_INFO", "command 20"}
	for i, want := range names {
		if got := Command(i + 1).String(); got != want {
			t.Errorf("command %d is %q", i+1, got)
		}
	}
	for i, want := range []string{"ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "state 5", "PRE_COPY", "state 7"} {
		if got := MigrationState(i).String(); got != want {
			t.Errorf("state %d is %q", i, got)
		}
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&Error{CommandDMAMap, syscall.EEXIST}, "vfiouser: DMA_MAP: file exists"},
		{&DMAError{0x1000, 16, syscall.EFAULT}, "vfiouser: dma: 16 bytes at iova 0x1000: bad address"},
	} {
		if got := tt.err.Error(); got != tt.want || !strings.HasPrefix(got, "vfiouser: ") {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
