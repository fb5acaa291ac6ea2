// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// templates are payloads that a server accepts, for the fuzzer to spoil.
func templates() map[uint16][]byte {
	return map[uint16][]byte{
		1:  append([]byte{0, 0, 0, 0}, fuzzVersion+"\x00"...),
		2:  dmaMap(0, 0, 0x10000, 0x1000).Payload,
		3:  append([]byte{24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0}, 0, 16, 0, 0, 0, 0, 0, 0),
		4:  append([]byte{16}, make([]byte, 15)...),
		5:  append([]byte{255, 0, 0, 0, 0, 0, 0, 0, 1}, make([]byte, 23)...),
		6:  append([]byte{255}, make([]byte, 15)...),
		7:  append([]byte{16}, make([]byte, 15)...),
		8:  irqs(0, 0x24, 2, 0, 1).Payload,
		9:  region(0, 9, 0, 0, 4).Payload,
		10: region(0, 10, 0, 0, 4, 1, 2, 3, 4).Payload,
		11: make([]byte, 16),
		12: make([]byte, 20),
		13: nil,
		15: append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, append(region(0, 10, 0, 0, 4).Payload, make([]byte, 8)...)...),
		16: append([]byte{64, 0, 0, 0, 6, 0, 2, 0, 0, 16}, make([]byte, 22)...), // start a log; a state, or a report by two bytes
		17: {12, 0, 0, 0, 4, 0, 0, 0},
		18: {12, 0, 0, 0, 4, 0, 0, 0, 1, 2, 3, 4},
		19: append([]byte{24}, make([]byte, 23)...),
	}
}

// fuzzVersion asks for all that there is.
const fuzzVersion = `{"capabilities":{"max_msg_fds":16,"write_multiple":true,"sparse_mmap_fds":true,"twin_socket":{"supported":true}}}`

// fuzzDevice is a device with all that a server can serve.
type fuzzDevice struct{ vfiouser.Precopier }

func (fuzzDevice) IOEvent(int, int, uint64) {}

// script turns fuzz input into the bytes of a session. Each message takes a
// command, flags, a number of file descriptors and of spoilt bytes, then the
// spoilt bytes as place and value. It returns the headers of the commands that
// have to be answered.
func script(in []byte, forms map[uint16][]byte, fds []int) (msgs []scripted) {
	next := func() byte {
		if len(in) == 0 {
			return 0
		}
		b := in[0]
		in = in[1:]
		return b
	}
	for id := uint16(1); len(in) > 0 && id < 100; id++ {
		m := vfiousertest.Message{ID: id, Command: uint16(next()) % 22}
		f, n := next(), next()
		m.Flags = uint32(f & 0x3f)
		if f&0x80 != 0 {
			m.Flags = 0 // most are plain commands
		}
		m.Payload = append([]byte(nil), forms[m.Command]...)
		for range n & 7 {
			at, v := next(), next()
			switch {
			case at == 255:
				m.Payload = m.Payload[:min(len(m.Payload), int(v))]
			case at == 254:
				m.Payload = append(m.Payload, make([]byte, v)...)
			case int(at) < len(m.Payload):
				m.Payload[at] = v
			}
		}
		msgs = append(msgs, scripted{m, fds[:min(int(n>>3), len(fds))], int(n>>6) * 5})
	}
	return msgs
}

// oracle follows the maps of a session. It is sure of them from a VERSION that was
// not spoilt on, until something is left to the server's choice.
type oracle struct {
	version    []byte
	model      *vfiouser.Model
	agreed     bool // on a version
	sure, lost bool
}

// judge takes in a message and its reply, nil for one that wanted none.
func (o *oracle) judge(t *testing.T, s scripted, r *vfiousertest.Message) {
	if s.m.Flags&0xf != 0 || o.lost {
		return
	}
	p := s.m.Payload
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(p[at:]) }
	u64 := func(at int) uint64 { return binary.NativeEndian.Uint64(p[at:]) }
	var want syscall.Errno
	var size uint64
	switch {
	case s.m.Command == 1 && !o.agreed:
		switch {
		case len(s.fds) == 0 && slices.Equal(p, o.version):
			o.agreed, o.sure = true, true
		case r == nil || r.Errno == 0:
			o.lost, o.sure = true, false // who knows on what
		}
		return
	case s.m.Command != 2 && s.m.Command != 3 || !o.agreed:
		return
	case s.m.Command == 2 && (len(p) < 32 || u32(0) < 32 || len(s.fds) > 1), s.m.Command == 3 && (len(p) < 24 || u32(0) < 24 || len(s.fds) > 0):
		want = syscall.EINVAL
	case s.m.Command == 2:
		flags, file := u32(4), len(s.fds)-1
		switch mode := flags >> 2; {
		case mode > 2 || flags&3 == 0 || mode != 0 && file < 0:
			want = syscall.EINVAL
		case mode == 2:
			file = 1
			fallthrough
		default:
			want = o.model.Map(u64(16), u64(24), u64(8), file, vfiouser.Prot(flags&3))
		}
	case u32(4) == 0 || u32(4) == 2:
		size, want = o.model.Unmap(u64(8), u64(16), u32(4) == 2)
	case u32(4)&1 != 0 && u32(4) < 4:
		// For a dirty bitmap: if there is a log is not followed here.
		if r == nil {
			o.lost, o.sure = true, false
		} else if r.Errno == 0 {
			o.model.Unmap(u64(8), u64(16), false)
		}
		return
	default:
		want = syscall.EINVAL
	}
	if r == nil {
		return
	}
	if syscall.Errno(r.Errno) != want || want == 0 && s.m.Command == 3 && binary.NativeEndian.Uint64(r.Payload[16:]) != size {
		t.Fatalf("%x with %d descriptors: errno %d, %x; want errno %d, size %#x", s.m.Bytes(), len(s.fds), r.Errno, r.Payload, want, size)
	}
}

type scripted struct {
	m   vfiousertest.Message
	fds []int
	cut int // send so many bytes first, if not 0
}

func openFDs(t testing.TB) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// FuzzSession speaks to a server in well-framed messages with spoilt contents.
// Each command must get its one reply in order, whatever it held, and nothing
// may be left open afterwards.
func FuzzSession(f *testing.F) {
	f.Add([]byte{1, 0x80, 0, 2, 0x80, 8, 9, 0x80, 0, 3, 0x80, 0, 8, 0x80, 8, 13, 0x80, 0})
	f.Add([]byte{1, 0x80, 0, 10, 0x10, 0, 10, 0x90, 1, 12, 255, 15, 0x90, 0, 9, 1, 0, 9, 2, 0, 99, 0, 0})
	f.Add([]byte{1, 0x80, 0, 2, 0x80, 0, 2, 0x80, 0x52, 8, 7, 16, 255, 3, 0x80, 1, 4, 2, 3, 0x80, 3, 4, 2, 9, 0, 17, 0})
	f.Add([]byte{1, 0x80, 0, 16, 0x80, 0, 16, 0x80, 4, 4, 8, 6, 1, 17, 16, 25, 16, 3, 0x80, 2, 4, 1, 255, 24, 16, 0x80, 1, 4, 7})
	f.Add([]byte{1, 0x80, 0, 16, 0x80, 2, 4, 2, 8, 6, 17, 0x80, 0, 19, 0x80, 0, 16, 0x80, 2, 4, 2, 8, 3, 16, 0x80, 2, 4, 2, 8, 4, 18, 0x80, 0, 13, 0x80, 0})
	f.Add([]byte{9, 0x80, 0, 1, 0x80, 1, 255, 9, 1, 0x80, 0, 8, 0x80, 0xfe, 8, 1, 16, 4, 8, 0x80, 2, 4, 33, 16, 0})
	// Maps of all kinds, unmaps; areas and events, of all regions, without room.
	f.Add([]byte{1, 0x80, 0, 2, 0x80, 10, 4, 11, 8, 1, 2, 0x80, 10, 4, 11, 18, 2, 2, 0x80, 2, 4, 3, 18, 3, 2, 0x80, 10, 18, 4, 4, 7,
		3, 0x80, 1, 10, 2, 3, 0x80, 1, 18, 1, 3, 0x80, 2, 10, 4, 17, 0, 3, 0x80, 3, 4, 2, 10, 0, 17, 0})
	f.Add([]byte{1, 0x80, 0, 5, 0x80, 0, 6, 0x80, 0, 5, 0x10, 0, 6, 0x80, 1, 8, 1, 5, 0x80, 1, 8, 2, 5, 0x80, 1, 0, 32, 6, 0x80, 1, 0, 16, 6, 0x80, 1, 8, 9})
	ram := vfiousertest.Memory(f, 1<<16)
	ev := vfiousertest.NewEventFD(f)
	fds := []int{int(ram.Fd()), ev.FD(), ev.FD(), int(ram.Fd())}
	forms := templates()
	cfg := vfiousertest.Config()
	cfg.WriteMultiple = true
	cfg.Spin = -1
	cfg.Regions[0].IOEvents = []vfiouser.IOEvent{{Offset: 8, Size: 4}, {Offset: 12, File: eventFile(f)}, {Offset: 16, Size: 1, Shadow: ram}}
	cfg.Regions[1] = vfiouser.Region{Size: 0x2000, Flags: rw, Areas: []vfiouser.Area{{Size: 0x1000, File: ram}}}
	cfg.Regions[2] = vfiouser.Region{Size: 0x2000, Flags: rw, Areas: []vfiouser.Area{
		{Size: 0x1000, File: ram}, {Offset: 0x1000, Size: 0x1000, File: vfiousertest.Memory(f, 0x1000)},
	}}
	f.Fuzz(func(t *testing.T, in []byte) {
		before := openFDs(t)
		dev := vfiousertest.NewMigrator(cfg)
		dev.SetState([]byte("a state"))
		srv, err := vfiouser.NewServer(fuzzDevice{vfiousertest.Precopier{Migrator: dev}}, cfg)
		if err != nil {
			t.Fatal(err)
		}
		a, b := vfiousertest.Pair(t)
		done := make(chan error, 1)
		go func() { done <- srv.ServeConn(context.Background(), b) }()
		p := vfiousertest.NewPeer(t, a)
		msgs := script(in, forms, fds)
		msgs = append(msgs, scripted{m: vfiousertest.Message{ID: 0xffff, Command: 99}})
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for _, s := range msgs {
				raw := s.m.Bytes()
				cut := min(s.cut, len(raw))
				if cut > 0 {
					sendRaw(a, raw[:cut], nil)
				}
				sendRaw(a, raw[cut:], s.fds)
			}
		}()
		o := oracle{version: forms[1], model: vfiouser.NewModel(1 << 16)}
		for _, s := range msgs {
			if s.m.Flags&0xf == 1 || s.m.Flags&vfiousertest.NoReply != 0 {
				o.judge(t, s, nil)
				continue
			}
			r := p.Recv()
			if r.ID != s.m.ID || r.Command != s.m.Command || r.Flags&^vfiousertest.Failed != vfiousertest.Reply {
				t.Fatalf("reply %+v to %+v", r, s.m)
			}
			if failed := r.Flags&vfiousertest.Failed != 0; failed != (r.Errno != 0) || failed && r.Size != 16 {
				t.Fatalf("reply %+v to %+v", r, s.m)
			}
			o.judge(t, s, &r)
		}
		if n := srv.Stats().DMAMapped; o.sure && n != uint64(o.model.Len()) {
			t.Fatalf("%d maps, want %d", n, o.model.Len())
		}
		<-sent
		a.Close()
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("serve: %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the server does not end")
		}
		if st := srv.Stats(); st.DMAMapped != 0 || len(dev.Gone) != 1 {
			t.Fatalf("after the end: %+v", st)
		}
		if after := openFDs(t); after > before {
			t.Fatalf("%d file descriptors before, %d after", before, after)
		}
		if maps, _ := os.ReadFile("/proc/self/maps"); strings.Contains(string(maps), "memfd:vfiousertest") {
			t.Fatal("guest memory stays mapped")
		}
	})
}

// sendRaw sends b with fds. The test fails by the replies that are missing.
func sendRaw(c *net.UnixConn, b []byte, fds []int) {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for len(b) > 0 {
		n, _, err := c.WriteMsgUnix(b, oob, nil)
		if err != nil {
			return
		}
		b, oob = b[n:], nil
	}
}

// FuzzBytes sends bytes as they are, framing included, cut where the first
// byte says. A server ends such a connection or goes on, but it neither
// panics nor hangs, and says each thing once.
func FuzzBytes(f *testing.F) {
	var session []byte
	for cmd := uint16(1); cmd < 20; cmd++ {
		session = append(session, vfiousertest.Message{ID: cmd, Command: cmd, Payload: templates()[cmd]}.Bytes()...)
	}
	f.Add(append([]byte{200}, session...))
	f.Add(append([]byte{7}, session[:300]...))
	long := vfiousertest.Message{ID: 1, Command: 10}.Bytes()
	binary.LittleEndian.PutUint32(long[4:], 1<<31)
	f.Add(append([]byte{3}, long...))
	binary.LittleEndian.PutUint32(long[4:], 15)
	f.Add(append([]byte{16}, long...))
	cfg := vfiousertest.Config()
	cfg.Spin = -1
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return
		}
		cut := int(in[0]) + 1
		in = in[1:]
		dev := vfiousertest.NewDevice(cfg)
		srv, err := vfiouser.NewServer(dev, cfg)
		if err != nil {
			t.Fatal(err)
		}
		a, b := vfiousertest.Pair(t)
		done := make(chan error, 1)
		go func() { done <- srv.ServeConn(context.Background(), b) }()
		go func() {
			for len(in) > 0 {
				n := min(cut, len(in))
				sendRaw(a, in[:n], nil)
				in = in[n:]
			}
			a.CloseWrite()
		}()
		a.SetReadDeadline(time.Now().Add(time.Minute))
		var head [16]byte
		for {
			if n, err := readFull(a, head[:]); err != nil {
				if os.IsTimeout(err) || n != 0 {
					t.Fatalf("%d bytes of a reply, %v", n, err)
				}
				break
			}
			size := binary.LittleEndian.Uint32(head[4:])
			if size < 16 || size > 1<<20+32 {
				t.Fatalf("reply of %d bytes", size)
			}
			if n, err := readFull(a, make([]byte, size-16)); err != nil && size > 16 {
				t.Fatalf("%d bytes of a payload of %d, %v", n, size-16, err)
			}
		}
		<-done
	})
}

func readFull(c *net.UnixConn, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = c.Read(b[n:])
		n += k
	}
	return n, err
}
