// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// region returns a REGION_READ or REGION_WRITE of the config space.
func region(id, cmd uint16, flags uint32, offset uint64, count uint32, data ...byte) vfiousertest.Message {
	b := binary.LittleEndian.AppendUint64(nil, offset)
	b = binary.LittleEndian.AppendUint32(b, 7)
	b = binary.LittleEndian.AppendUint32(b, count)
	return vfiousertest.Message{ID: id, Command: cmd, Flags: flags, Payload: append(b, data...)}
}

// dmaMap returns a DMA_MAP for reading and writing.
func dmaMap(id uint16, offset, addr, size uint64) vfiousertest.Message {
	b := []byte{32, 0, 0, 0, 3, 0, 0, 0}
	b = binary.LittleEndian.AppendUint64(b, offset)
	b = binary.LittleEndian.AppendUint64(b, addr)
	return vfiousertest.Message{ID: id, Command: 2, Payload: binary.LittleEndian.AppendUint64(b, size)}
}

// irqs returns a SET_IRQS.
func irqs(id uint16, flags, index, start, count uint32, data ...byte) vfiousertest.Message {
	var b []byte
	for _, v := range []uint32{20 + uint32(len(data)), flags, index, start, count} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return vfiousertest.Message{ID: id, Command: 8, Payload: append(b, data...)}
}

func expect(t *testing.T, r vfiousertest.Message, errno uint32) {
	t.Helper()
	want := uint32(vfiousertest.Reply)
	if errno != 0 {
		want |= vfiousertest.Failed
	}
	if r.Errno != errno || r.Flags != want || errno != 0 && r.Size != 16 {
		t.Errorf("reply %+v, want errno %d", r, errno)
	}
}

// TestSplit cuts a posted write, a DMA map with its file and a read at every
// byte, in header and body alike.
func TestSplit(t *testing.T) {
	cfg := vfiousertest.Config()
	cfg.Spin = -1
	dev := vfiousertest.NewDevice(cfg)
	srv, conn := vfiousertest.Serve(t, dev, cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	ram := vfiousertest.Memory(t, 4096)
	if _, err := ram.WriteAt([]byte("guest"), 0); err != nil {
		t.Fatal(err)
	}

	write := region(1, 10, vfiousertest.NoReply, 0x40, 3, 'a', 'b', 'c').Bytes()
	read := region(2, 9, 0, 0x40, 3).Bytes()
	stream := slices.Concat(write, read)
	for cut := 1; cut < len(stream); cut++ {
		dev.Set(7, 0x40, []byte{0, 0, 0})
		p.Send(stream[:cut])
		p.Send(stream[cut:])
		r := p.Recv()
		if r.ID != 2 || string(r.Payload[16:]) != "abc" {
			t.Fatalf("cut at %d: %+v", cut, r)
		}
	}
	// The file may come with the first piece or with the second.
	m := dmaMap(3, 0, 0, 4096).Bytes()
	for cut := 1; cut < len(m); cut++ {
		for _, first := range []bool{true, false} {
			if first {
				p.Send(m[:cut], int(ram.Fd()))
				p.Send(m[cut:])
			} else {
				p.Send(m[:cut])
				p.Send(m[cut:], int(ram.Fd()))
			}
			expect(t, p.Recv(), 0)
			b := make([]byte, 5)
			if err := srv.DMA().Read(0, b); err != nil || string(b) != "guest" {
				t.Fatalf("cut at %d, file first %v: read %q, %v", cut, first, b, err)
			}
			expect(t, p.Do(vfiousertest.Message{ID: 4, Command: 3, Payload: unhex(t, "18000000 02000000 0000000000000000 0000000000000000")}), 0)
		}
	}
}

// TestGlued sends messages so that one read brings several, with the file of
// one of them, which must go to that one and to no other.
func TestGlued(t *testing.T) {
	gate := make(chan struct{})
	cfg := vfiousertest.Config()
	dev := vfiousertest.NewDevice(cfg)
	dev.SetHooks(vfiousertest.Hooks{Reset: func() error { <-gate; return nil }})
	srv, conn := vfiousertest.Serve(t, dev, cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	ram := vfiousertest.Memory(t, 4096)
	if _, err := ram.WriteAt([]byte("guest"), 0); err != nil {
		t.Fatal(err)
	}

	m := dmaMap(4, 0, 0x4000, 4096).Bytes()
	for _, cut := range []int{1, 15, 16, 17, 47, len(m)} {
		// The server is busy while these arrive.
		p.Send(vfiousertest.Message{ID: 1, Command: 13}.Bytes())
		p.Send(dmaMap(2, 0, 0x1000, 4096).Bytes())
		p.Send(region(3, 9, 0, 0, 4).Bytes())
		p.Send(m[:cut], int(ram.Fd()))
		if cut < len(m) {
			p.Send(m[cut:])
		}
		p.Send(dmaMap(5, 0, 0x8000, 4096).Bytes())
		gate <- struct{}{}
		for id := uint16(1); id <= 5; id++ {
			if r := p.Recv(); r.ID != id || r.Flags != vfiousertest.Reply {
				t.Fatalf("cut at %d: reply %+v, want id %d", cut, r, id)
			}
		}
		for _, a := range []uint64{0x1000, 0x4000, 0x8000} {
			if got, want := srv.DMA().Backed(a, 4096, vfiouser.ProtRead), a == 0x4000; got != want {
				t.Errorf("cut at %d: map at %#x has a file: %v", cut, a, got)
			}
		}
		expect(t, p.Do(vfiousertest.Message{ID: 6, Command: 3, Payload: unhex(t, "18000000 02000000 0000000000000000 0000000000000000")}), 0)
	}
}

// TestFDLimits sends more file descriptors than agreed, than allowed, and to
// those who want none. TestMain finds those that stay open.
func TestFDLimits(t *testing.T) {
	const EINVAL, E2BIG = 22, 7
	cfg := vfiousertest.Config()
	cfg.MaxFDs = 4
	dev := vfiousertest.NewDevice(cfg)
	srv, conn := vfiousertest.Serve(t, dev, cfg)
	p := vfiousertest.NewPeer(t, conn)
	if text := p.Version(`{"capabilities":{"max_msg_fds":3}}`); text != `{"capabilities":{"max_msg_fds":3}}` {
		t.Errorf("version %s", text)
	}
	e := vfiousertest.NewEventFD(t)
	var fds []int
	for range 200 {
		fds = append(fds, e.FD())
	}
	for _, tt := range []struct{ n, errno int }{{3, 0}, {4, EINVAL}, {5, EINVAL}, {200, EINVAL}} {
		expect(t, p.Do(irqs(1, 0x24, 2, 0, uint32(tt.n)), fds[:tt.n]...), uint32(tt.errno))
	}
	if err := srv.Trigger(2, 2); err != nil || e.Take() != 1 {
		t.Errorf("vector 2: %v", err)
	}
	// Piece by piece.
	m := irqs(2, 0x24, 2, 0, 6).Bytes()
	p.Send(m[:10], fds[:3]...)
	p.Send(m[10:20], fds[:3]...)
	p.Send(m[20:])
	expect(t, p.Recv(), EINVAL)
	// To messages that want none, unknown ones included.
	for _, cmd := range []uint16{4, 9, 13, 99} {
		expect(t, p.Do(vfiousertest.Message{ID: 3, Command: cmd}, fds[:2]...), EINVAL)
	}
	// Those of a message that is too long go with it, in any part.
	long := region(4, 10, 0, 0, 2<<20, make([]byte, 2<<20)...).Bytes()
	sent := make(chan error, 1)
	go func() {
		for len(long) > 0 {
			n, _, err := conn.WriteMsgUnix(long[:min(len(long), 300<<10)], unix.UnixRights(fds[:2]...), nil)
			if err != nil {
				sent <- err
				return
			}
			long = long[n:]
		}
		sent <- nil
	}()
	expect(t, p.Recv(), E2BIG)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	expect(t, p.Do(region(5, 9, 0, 0, 4)), 0)
	// A message that never becomes complete.
	p.Send(m[:10], fds[:3]...)
	conn.Close()
	<-dev.Gone
}

// TestTruncatedRights has the kernel cut file descriptors off because there
// are no numbers left.
func TestTruncatedRights(t *testing.T) {
	cfg := vfiousertest.Config()
	_, conn := vfiousertest.Serve(t, vfiousertest.NewDevice(cfg), cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	e := vfiousertest.NewEventFD(t)
	ram := vfiousertest.Memory(t, 4096)
	var old unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	// No number is left: all below next are taken.
	next, err := unix.FcntlInt(uintptr(e.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	low := unix.Rlimit{Cur: uint64(next), Max: old.Max}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &low, nil); err != nil {
		t.Fatal(err)
	}
	// Taken as they arrive these would be a map without a file and a vector
	// without an eventfd, both in order.
	noFile := p.Do(dmaMap(1, 0, 0, 4096), int(ram.Fd()))
	noEventFD := p.Do(irqs(2, 0x24, 2, 0, 1), e.FD())
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil); err != nil {
		t.Fatal(err)
	}
	expect(t, noFile, 22)
	expect(t, noEventFD, 22)
	expect(t, p.Do(dmaMap(3, 0, 0, 4096), int(ram.Fd())), 0)
}

// TestLongMessages passes data up to the limit and beyond; what is beyond is
// refused and the stream goes on.
func TestLongMessages(t *testing.T) {
	const E2BIG = 7
	cfg := vfiousertest.Config()
	cfg.Regions[7].Size = 4 << 20
	dev := vfiousertest.NewDevice(cfg)
	srv, conn := vfiousertest.Serve(t, dev, cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	expect(t, p.Do(region(1, 10, 0, 5, 1<<20, data...)), 0)
	r := p.Do(region(2, 9, 0, 5, 1<<20))
	if !slices.Equal(r.Payload[16:], data) {
		t.Error("1 MiB came back changed")
	}
	expect(t, p.Do(region(3, 9, 0, 0, 1<<20+1)), E2BIG)
	expect(t, p.Do(region(4, 10, 0, 0, 1<<20+1, append(data, 0)...)), E2BIG)
	p.Send(region(5, 10, vfiousertest.NoReply, 0, 1<<20+1, append(data, 0)...).Bytes())
	expect(t, p.Do(region(6, 9, 0, 0, 4)), 0)
	if n := srv.Stats().NoReplyFailed; n != 1 {
		t.Errorf("%d failures without reply counted", n)
	}
}

// TestBadFraming ends a connection whose stream cannot be cut any further, and
// no other.
func TestBadFraming(t *testing.T) {
	for _, size := range []uint32{0, 1, 15} {
		cfg := vfiousertest.Config()
		dev := vfiousertest.NewDevice(cfg)
		srv, conn := vfiousertest.Serve(t, dev, cfg)
		p := vfiousertest.NewPeer(t, conn)
		p.Version()
		b := region(1, 9, 0, 0, 4).Bytes()
		bad := vfiousertest.Message{ID: 2, Command: 9}.Bytes()
		binary.LittleEndian.PutUint32(bad[4:], size)
		p.Send(slices.Concat(b, bad))
		expect(t, p.Recv(), 0)
		p.ExpectEOF()
		<-dev.Gone
		vfiousertest.NewPeer(t, reconnect(t, srv)).Version()
	}
}

// TestPeerTypes sends headers that are not commands.
func TestPeerTypes(t *testing.T) {
	const EINVAL = 22
	cfg := vfiousertest.Config()
	srv, conn := vfiousertest.Serve(t, vfiousertest.NewDevice(cfg), cfg)
	p := vfiousertest.NewPeer(t, conn)
	expect(t, p.Do(vfiousertest.Message{ID: 1, Command: 13}), EINVAL) // before the version
	p.Version()
	p.Send(vfiousertest.Message{ID: 2, Command: 11, Flags: vfiousertest.Reply}.Bytes())                       // to nothing
	p.Send(vfiousertest.Message{ID: 3, Command: 11, Flags: vfiousertest.Reply | vfiousertest.Failed}.Bytes()) // to nothing
	expect(t, p.Do(vfiousertest.Message{ID: 4, Command: 13, Flags: 2}), EINVAL)
	expect(t, p.Do(vfiousertest.Message{ID: 5, Command: 13, Flags: 15}), EINVAL)
	expect(t, p.Do(vfiousertest.Message{ID: 6, Command: 13}), 0)
	if st := srv.Stats(); st.StrayReplies != 2 || st.Errors != 3 {
		t.Errorf("stats %+v", st)
	}
}

// TestVersion proposes versions and capabilities, one connection each.
func TestVersion(t *testing.T) {
	prefix := func(major, minor byte, text string) []byte {
		b := []byte{major, 0, minor, 0}
		if text != "" {
			b = append(append(b, text...), 0)
		}
		return b
	}
	all := `{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096}}`
	for _, tt := range []struct {
		name    string
		payload []byte
		multi   bool
		want    []byte // nil: refused
	}{
		{"QEMU", prefix(0, 0, vfiousertest.QEMUVersion), false, prefix(0, 0, all)},
		{"QEMU, write multiple offered", prefix(0, 0, vfiousertest.QEMUVersion), true,
			prefix(0, 0, strings.Replace(all, "}}", `,"write_multiple":true}}`, 1))},
		{"no text", prefix(0, 1, ""), false, prefix(0, 1, "")},
		{"newer minor", prefix(0, 9, ""), false, prefix(0, 1, "")},
		{"empty capabilities", prefix(0, 0, `{"capabilities":{}}`), false, prefix(0, 0, `{"capabilities":{}}`)},
		{"empty text", prefix(0, 0, `{}`), false, prefix(0, 0, "")},
		{"smaller values stand", prefix(0, 0, `{"capabilities":{"max_msg_fds":2,"max_data_xfer_size":4096,"max_dma_maps":7}}`), false,
			prefix(0, 0, `{"capabilities":{"max_msg_fds":2,"max_data_xfer_size":4096,"max_dma_maps":7}}`)},
		{"larger values fall", prefix(0, 0, `{"capabilities":{"max_msg_fds":4096,"max_data_xfer_size":134217728,"max_dma_maps":100000}}`), false,
			prefix(0, 0, `{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535}}`)},
		{"larger page", prefix(0, 0, `{"capabilities":{"pgsizes":2162688}}`), false, prefix(0, 0, `{"capabilities":{"pgsizes":65536}}`)},
		{"smaller page beside ours", prefix(0, 0, `{"capabilities":{"pgsizes":5120}}`), false, prefix(0, 0, `{"capabilities":{"pgsizes":4096}}`)},
		{"unknown keys", prefix(0, 0, `{"capabilities":{"twin_sockets":{"supported":true},"x":[1,{}]},"y":0}`), false,
			prefix(0, 0, `{"capabilities":{}}`)},
		{"twin socket declined", prefix(0, 0, `{"capabilities":{"twin_socket":{"supported":false}}}`), false, prefix(0, 0, `{"capabilities":{}}`)},
		{"twin socket left open", prefix(0, 0, `{"capabilities":{"twin_socket":{}}}`), false, prefix(0, 0, `{"capabilities":{}}`)},
		{"twin socket without descriptors", prefix(0, 0, `{"capabilities":{"max_msg_fds":0,"twin_socket":{"supported":true}}}`), false,
			prefix(0, 0, `{"capabilities":{"max_msg_fds":0}}`)},
		{"twin socket of another type", prefix(0, 0, `{"capabilities":{"twin_socket":true}}`), false, nil},
		{"write multiple not offered", prefix(0, 0, `{"capabilities":{"write_multiple":true}}`), false, prefix(0, 0, `{"capabilities":{}}`)},
		{"write multiple declined", prefix(0, 0, `{"capabilities":{"write_multiple":false}}`), true, prefix(0, 0, `{"capabilities":{}}`)},
		{"several files", prefix(0, 0, `{"capabilities":{"sparse_mmap_fds":true}}`), false, prefix(0, 0, `{"capabilities":{"sparse_mmap_fds":true}}`)},
		{"several files declined", prefix(0, 0, `{"capabilities":{"sparse_mmap_fds":false}}`), false, prefix(0, 0, `{"capabilities":{}}`)},
		{"dirty bitmaps of a device that does not migrate", prefix(0, 0, `{"capabilities":{"migration":{"pgsize":4096}}}`), false,
			prefix(0, 0, `{"capabilities":{}}`)},
		{"bitmap page", prefix(0, 0, `{"capabilities":{"migration":{"pgsize":12288}}}`), false, nil},
		{"no bitmap page", prefix(0, 0, `{"capabilities":{"migration":{"pgsize":0}}}`), false, nil},
		{"migration of the wrong type", prefix(0, 0, `{"capabilities":{"migration":true}}`), false, nil},
		{"major", prefix(1, 0, ""), false, nil},
		{"no payload", nil, false, nil},
		{"half a prefix", []byte{0, 0}, false, nil},
		{"no NUL", []byte("\x00\x00\x00\x00{}"), false, nil},
		{"NUL alone", []byte{0, 0, 0, 0, 0}, false, nil},
		{"not JSON", prefix(0, 0, `{"capabilities"`), false, nil},
		{"wrong type", prefix(0, 0, `{"capabilities":{"max_msg_fds":"1"}}`), false, nil},
		{"negative", prefix(0, 0, `{"capabilities":{"max_dma_maps":-1}}`), false, nil},
		{"fraction", prefix(0, 0, `{"capabilities":{"pgsizes":0.5}}`), false, nil},
		{"no data at all", prefix(0, 0, `{"capabilities":{"max_data_xfer_size":0}}`), false, nil},
		{"page too small", prefix(0, 0, `{"capabilities":{"pgsizes":2048}}`), false, nil},
		{"long", prefix(0, 0, `{"x":"`+strings.Repeat("x", 5000)+`"}`), false, nil},
		{"deep", prefix(0, 0, strings.Repeat(`{"x":`, 600)), false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := vfiousertest.Config()
			cfg.WriteMultiple = tt.multi
			_, conn := vfiousertest.Serve(t, vfiousertest.NewDevice(cfg), cfg)
			p := vfiousertest.NewPeer(t, conn)
			r := p.Do(vfiousertest.Message{ID: 1, Command: 1, Payload: tt.payload})
			if tt.want == nil {
				expect(t, r, 22)
				// The client may think again.
				expect(t, p.Do(vfiousertest.Message{ID: 2, Command: 1, Payload: prefix(0, 0, "")}), 0)
				return
			}
			expect(t, r, 0)
			if !slices.Equal(r.Payload, tt.want) {
				t.Errorf("payload %q, want %q", r.Payload, tt.want)
			}
			if len(r.Payload) > len(tt.payload) || len(r.Payload) > 4+194 {
				t.Errorf("reply of %d bytes to %d", len(r.Payload), len(tt.payload))
			}
		})
	}
}

// TestInfo asks for regions and interrupts at and beyond their bounds.
func TestInfo(t *testing.T) {
	const EINVAL = 22
	cfg := vfiousertest.Config()
	_, conn := vfiousertest.Serve(t, vfiousertest.NewDevice(cfg), cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	for _, tt := range []struct {
		cmd     uint16
		payload string
		errno   uint32
		reply   string
	}{
		{4, "18000000 00000000 00000000 00000000 00000000 00000000", 0, "10000000 03000000 09000000 05000000"}, // a newer, longer form
		{4, "0f000000 00000000 00000000 00000000", EINVAL, ""},
		{4, "10000000 00000000 00000000", EINVAL, ""},
		{4, "", EINVAL, ""},
		{5, "40000000 00000000 06000000 00000000 0000000000000000 0000000000000000", 0, "20000000 01000000 06000000 00000000 0010000000000000 0000000000000000"},
		{5, "20000000 00000000 09000000 00000000 0000000000000000 0000000000000000", EINVAL, ""},
		{5, "20000000 00000000 ffffffff 00000000 0000000000000000 0000000000000000", EINVAL, ""},
		{5, "1f000000 00000000 00000000 00000000 0000000000000000 0000000000000000", EINVAL, ""},
		{5, "20000000 00000000 00000000 00000000 0000000000000000 00000000", EINVAL, ""},
		{7, "10000000 00000000 00000000 00000000", 0, "10000000 07000000 00000000 01000000"},
		{7, "10000000 00000000 04000000 00000000", 0, "10000000 00000000 04000000 00000000"},
		{7, "10000000 00000000 05000000 00000000", EINVAL, ""},
		{7, "0f000000 00000000 00000000 00000000", EINVAL, ""},
		{7, "10000000 00000000", EINVAL, ""},
	} {
		r := p.Do(vfiousertest.Message{ID: 1, Command: tt.cmd, Payload: unhex(t, tt.payload)})
		expect(t, r, tt.errno)
		if !slices.Equal(r.Payload, unhex(t, tt.reply)) {
			t.Errorf("command %d %s: %x", tt.cmd, tt.payload, r.Payload)
		}
	}
}

// TestRegions reads and writes at and beyond the bounds of regions.
func TestRegions(t *testing.T) {
	const EIO, EINVAL, EPERM = 5, 22, 1
	cfg := vfiousertest.Config()
	dev := vfiousertest.NewDevice(cfg)
	srv, conn := vfiousertest.Serve(t, dev, cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	for _, tt := range []struct {
		name    string
		cmd     uint16
		payload string
		errno   uint32
		reply   string
		call    string
	}{
		{"write", 10, "fe0f000000000000 07000000 02000000 1234", 0, "fe0f000000000000 07000000 02000000", "write 7 0xffe 1234"},
		{"read back", 9, "fd0f000000000000 07000000 03000000", 0, "fd0f000000000000 07000000 03000000 001234", "read 7 0xffd 3"},
		{"read past the end", 9, "fd0f000000000000 07000000 04000000", EINVAL, "", ""},
		{"write past the end", 10, "ff0f000000000000 07000000 02000000 1234", EINVAL, "", ""},
		{"offset wraps", 9, "ffffffffffffffff 07000000 02000000", EINVAL, "", ""},
		{"nothing at the end", 9, "0010000000000000 07000000 00000000", 0, "0010000000000000 07000000 00000000", ""},
		{"nothing past the end", 9, "0110000000000000 07000000 00000000", EINVAL, "", ""},
		{"region 9", 9, "0000000000000000 09000000 01000000", EINVAL, "", ""},
		{"region deadbeef", 9, "0000000000000000 efbeadde 04000000", EINVAL, "", ""},
		{"absent region", 9, "0000000000000000 01000000 01000000", EINVAL, "", ""},
		{"write to ROM", 10, "0000000000000000 06000000 01000000 00", EINVAL, "", ""},
		{"read of ROM", 9, "0000000000000000 06000000 01000000", 0, "0000000000000000 06000000 01000000 00", "read 6 0x0 1"},
		{"less data than said", 10, "0000000000000000 07000000 02000000 12", EINVAL, "", ""},
		{"more data than said", 10, "0000000000000000 07000000 02000000 123456", EINVAL, "", ""},
		{"half a request", 9, "0000000000000000 07000000", EINVAL, "", ""},
		{"half a write", 10, "0000000000000000 07000000", EINVAL, "", ""},
	} {
		r := p.Do(vfiousertest.Message{ID: 1, Command: tt.cmd, Payload: unhex(t, tt.payload)})
		expect(t, r, tt.errno)
		if !slices.Equal(r.Payload, unhex(t, tt.reply)) {
			t.Errorf("%s: %x", tt.name, r.Payload)
		}
		if got := strings.Join(dev.Calls(), ";"); got != tt.call {
			t.Errorf("%s: device saw %q, want %q", tt.name, got, tt.call)
		}
	}
	before := srv.Stats()
	// Posted: no answer, but a count of what failed.
	p.Send(region(1, 10, vfiousertest.NoReply, 0, 1, 0xaa).Bytes())
	p.Send(region(1, 10, vfiousertest.NoReply, 4096, 1, 0xaa).Bytes())
	p.Send(vfiousertest.Message{ID: 1, Command: 77, Flags: vfiousertest.NoReply}.Bytes())
	p.Send(region(1, 9, vfiousertest.NoReply, 0, 1).Bytes())
	if r := p.Do(region(2, 9, 0, 0, 1)); r.Payload[16] != 0xaa {
		t.Errorf("read %+v", r)
	}
	after := srv.Stats()
	if d := after.NoReplyFailed - before.NoReplyFailed; d != 2 {
		t.Errorf("%d failures without reply, want 2", d)
	}
	if d := after.PostedWrites - before.PostedWrites; d != 2 {
		t.Errorf("%d posted writes, want 2", d)
	}
	// What the device says goes on the wire.
	for _, tt := range []struct {
		err  error
		want uint32
	}{{unix.EPERM, EPERM}, {fmt.Errorf("device: %w", unix.EINVAL), EINVAL}, {fmt.Errorf("no errno"), EIO}, {unix.Errno(0), EIO}} {
		access := func(int, uint64, []byte) error { return tt.err }
		dev.SetHooks(vfiousertest.Hooks{Read: access, Write: access, Reset: func() error { return tt.err }})
		expect(t, p.Do(region(3, 9, 0, 0, 4)), tt.want)
		expect(t, p.Do(region(4, 10, 0, 0, 1, 0)), tt.want)
		expect(t, p.Do(vfiousertest.Message{ID: 5, Command: 13}), tt.want)
	}
}

// TestWriteMulti passes several writes in one message.
func TestWriteMulti(t *testing.T) {
	const EINVAL = 22
	cfg := vfiousertest.Config()
	cfg.WriteMultiple = true
	dev := vfiousertest.NewDevice(cfg)
	srv, conn := vfiousertest.Serve(t, dev, cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	const (
		a   = "0000000000000000 07000000 04000000 1122334455667788"
		b   = "0800000000000000 00000000 08000000 1122334455667788"
		non = "0800000000000000 00000000 00000000 1122334455667788"
		bad = "0010000000000000 00000000 01000000 1122334455667788"
		big = "0000000000000000 00000000 09000000 1122334455667788"
	)
	for _, tt := range []struct {
		name, payload string
		errno         uint32
		reply, calls  string
	}{
		{"two", "0200000000000000" + a + b, 0, "0200000000000000", "write 7 0x0 11223344;write 0 0x8 1122334455667788"},
		{"none", "0000000000000000", 0, "0000000000000000", ""},
		{"an empty one", "0200000000000000" + non + a, 0, "0200000000000000", "write 7 0x0 11223344"},
		{"second fails", "0300000000000000" + a + bad + b, 0, "0100000000000000", "write 7 0x0 11223344"},
		{"first fails", "0200000000000000" + bad + a, EINVAL, "", ""},
		{"too much data", "0100000000000000" + big, EINVAL, "", ""},
		{"fewer than said", "0200000000000000" + a, EINVAL, "", ""},
		{"more than said", "0100000000000000" + a + b, EINVAL, "", ""},
		{"count overflows", "0100000000000020" + a, EINVAL, "", ""}, // times 24 is 24 modulo 2^64
		{"no count", "01000000", EINVAL, "", ""},
	} {
		r := p.Do(vfiousertest.Message{ID: 1, Command: 15, Payload: unhex(t, tt.payload)})
		expect(t, r, tt.errno)
		if !slices.Equal(r.Payload, unhex(t, tt.reply)) {
			t.Errorf("%s: %x", tt.name, r.Payload)
		}
		if got := strings.Join(dev.Calls(), ";"); got != tt.calls {
			t.Errorf("%s: device saw %q, want %q", tt.name, got, tt.calls)
		}
	}
	before := srv.Stats()
	p.Send(vfiousertest.Message{ID: 1, Command: 15, Flags: vfiousertest.NoReply, Payload: unhex(t, "0300000000000000"+a+bad+b)}.Bytes())
	expect(t, p.Do(region(2, 9, 0, 0, 1)), 0)
	if st := srv.Stats(); st.NoReplyFailed != before.NoReplyFailed+1 || st.PostedWrites != before.PostedWrites+2 {
		t.Errorf("stats %+v", st)
	}
}
