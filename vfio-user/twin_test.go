// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// twinPeer agrees on a twin socket and returns both ends of the client's.
func twinPeer(t *testing.T, srv *vfiouser.Server) (p, twin *vfiousertest.Peer) {
	t.Helper()
	p = vfiousertest.NewPeer(t, vfiousertest.Connect(t, srv))
	text := `{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true}}}`
	r, files := p.DoFDs(vfiousertest.Message{ID: 1, Command: 1, Payload: append([]byte{0, 0, 1, 0}, text+"\x00"...)})
	want := "\x00\x00\x01\x00" + `{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true,"fd_index":0}}}` + "\x00"
	if string(r.Payload) != want || len(files) != 1 {
		t.Fatalf("version: %q with %d descriptors, want %q with one", r.Payload, len(files), want)
	}
	c, err := net.FileConn(files[0])
	files[0].Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return p, vfiousertest.NewPeer(t, c.(*net.UnixConn))
}

// TestTwinSocket has the server's commands travel on a socket of their own.
func TestTwinSocket(t *testing.T) {
	cfg := vfiousertest.Config()
	dev := vfiousertest.NewDevice(cfg)
	srv, err := vfiouser.NewServer(dev, cfg)
	if err != nil {
		t.Fatal(err)
	}
	p, twin := twinPeer(t, srv)
	expect(t, p.Do(dmaMap(2, 0, 0x1000, 0x1000)), 0)
	// The device asks for guest memory in the middle of a region access.
	inside := make(chan error, 1)
	b := make([]byte, 4)
	dev.SetHooks(vfiousertest.Hooks{Write: func(int, uint64, []byte) error {
		inside <- srv.DMA().Read(0x1000, b)
		return nil
	}})
	p.Send(region(3, 10, 0, 0, 1, 7).Bytes())
	q := twin.Recv()
	if q.Command != 11 || q.Flags != 0 {
		t.Errorf("on the twin: %+v", q)
	}
	reply := vfiousertest.Message{ID: q.ID, Command: 11, Flags: 1, Payload: append(q.Payload, "abcd"...)}
	twin.Send(reply.Bytes())
	if err := <-inside; err != nil || string(b) != "abcd" {
		t.Errorf("read from a device call: %q, %v", b, err)
	}
	expect(t, p.Recv(), 0)
	dev.SetHooks(vfiousertest.Hooks{})
	// A reply on the other socket is to nothing; commands do not belong here.
	done := make(chan error, 1)
	go func() { done <- srv.DMA().Read(0x1000, b) }()
	q = twin.Recv()
	reply.ID = q.ID
	p.Send(reply.Bytes())
	expect(t, p.Do(vfiousertest.Message{ID: 9, Command: 13}), 0)
	if n := srv.Stats().StrayReplies; n != 1 {
		t.Errorf("%d stray replies", n)
	}
	expect(t, twin.Do(vfiousertest.Message{ID: 4, Command: 13}), 22)
	twin.Send(vfiousertest.Message{ID: 5, Command: 13, Flags: vfiousertest.NoReply}.Bytes())
	twin.Send(vfiousertest.Message{ID: 6, Command: 11, Flags: vfiousertest.Reply}.Bytes())
	file := vfiousertest.Memory(t, 0x1000)
	twin.Send(reply.Bytes(), int(file.Fd())) // with a descriptor that nobody wants
	if err := <-done; err != nil {
		t.Error(err)
	}
	if st := srv.Stats(); st.StrayReplies != 2 || st.Errors != 1 || st.NoReplyFailed != 1 {
		t.Errorf("stats %+v", st)
	}
	// The twin ends in the middle of an access: the device hears of it, and the
	// rest goes on.
	go func() { done <- srv.DMA().Write(0x1000, b) }()
	twin.Recv()
	twin.Conn().Close()
	errno(t, "twin gone", <-done, 0x1000, syscall.EFAULT)
	errno(t, "twin gone for good", srv.DMA().Read(0x1000, b), 0x1000, syscall.EFAULT)
	expect(t, p.Do(vfiousertest.Message{ID: 9, Command: 13}), 0)
	p.Conn().Close()
	<-dev.Gone
	// What cannot be cut into messages ends the twin alone.
	p, twin = twinPeer(t, srv)
	twin.Send(make([]byte, 16))
	twin.ExpectEOF()
	expect(t, p.Do(vfiousertest.Message{ID: 9, Command: 13}), 0)
	// The end of the connection ends the twin.
	p.Conn().Close()
	<-dev.Gone
	_, twin = twinPeer(t, srv)
	twin.Conn().CloseWrite()
	// A client that wants no reply has no twin either.
	next, err := vfiouser.NewServer(dev, cfg)
	if err != nil {
		t.Fatal(err)
	}
	p = vfiousertest.NewPeer(t, vfiousertest.Connect(t, next))
	text := `{"capabilities":{"twin_socket":{"supported":true}}}`
	p.Send(vfiousertest.Message{ID: 1, Command: 1, Flags: vfiousertest.NoReply, Payload: append([]byte{0, 0, 1, 0}, text+"\x00"...)}.Bytes())
	expect(t, p.Do(dmaMap(2, 0, 0x1000, 0x1000)), 0)
	var e *vfiouser.DMAError
	if err := next.DMA().Read(0x1000, b); !errors.As(err, &e) || e.Errno != syscall.EFAULT && e.Errno != syscall.EIO {
		t.Errorf("read without a twin: %v", err)
	}
}

// asking is memory that makes a request of its own for each access.
type asking struct {
	ramMemory
	c chan *vfiouser.Client
}

func (m *asking) ReadDMA(iova uint64, p []byte) error {
	c := <-m.c
	defer func() { m.c <- c }()
	if err := c.ReadRegion(7, 0, make([]byte, 4)); err != nil {
		return err
	}
	return m.ramMemory.ReadDMA(iova, p)
}

// TestTwinClient has both ends ask each other at once.
func TestTwinClient(t *testing.T) {
	cfg := vfiousertest.Config()
	dev := vfiousertest.NewDevice(cfg)
	m := &asking{ramMemory{b: pattern(0x10000)}, make(chan *vfiouser.Client, 1)}
	srv, c := vfiousertest.Start(t, dev, cfg, vfiouser.ClientConfig{Memory: m, TwinSocket: true})
	m.c <- c
	if err := c.Map(0, 0x10000, 0, rd|wr, nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			b := make([]byte, 100)
			for k := range 50 {
				a := uint64(i*1000 + k)
				if err := srv.DMA().Read(a, b); err != nil || string(b) != string(pattern(0x10000)[a:a+100]) {
					t.Errorf("read at %#x: %v", a, err)
				}
				if err := c.WriteRegion(0, 0, b[:4]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if st := srv.Stats(); st.DMAMessages != 200 || st.StrayReplies != 0 {
		t.Errorf("stats %+v", st)
	}
	c.Close()
	<-dev.Gone
	if err := srv.DMA().Read(0, make([]byte, 1)); err == nil {
		t.Error("memory of a client that has gone")
	}
}

// TestTwinAnswers has servers answer a client's wish for a twin.
func TestTwinAnswers(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	datagram, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(datagram[0])
	defer unix.Close(datagram[1])
	inet, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inet)
	file := int(vfiousertest.Memory(t, 0x1000).Fd())
	for _, tt := range []struct {
		name, text string
		fds        []int
		asked, bad bool
	}{
		{"yes", `{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}`, ends[:1], true, false},
		{"the second descriptor", `{"capabilities":{"twin_socket":{"supported":true,"fd_index":1}}}`, []int{file, ends[0]}, true, false},
		{"no", `{"capabilities":{"twin_socket":{"supported":false}}}`, nil, true, false},
		{"no, with a descriptor", `{"capabilities":{"twin_socket":{"supported":false,"fd_index":0}}}`, ends[:1], true, false},
		{"not a word", `{"capabilities":{}}`, nil, true, false},
		{"no index", `{"capabilities":{"twin_socket":{"supported":true}}}`, ends[:1], true, true},
		{"no descriptor", `{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}`, nil, true, true},
		{"index out of range", `{"capabilities":{"twin_socket":{"supported":true,"fd_index":1}}}`, ends[:1], true, true},
		{"index far out of range", `{"capabilities":{"twin_socket":{"supported":true,"fd_index":18446744073709551615}}}`, ends[:1], true, true},
		{"negative index", `{"capabilities":{"twin_socket":{"supported":true,"fd_index":-1}}}`, ends[:1], true, true},
		{"a file", `{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}`, []int{file}, true, true},
		{"a datagram socket", `{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}`, datagram[:1], true, true},
		{"another network", `{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}`, []int{inet}, true, true},
		{"nobody asked", `{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}`, ends[:1], false, true},
	} {
		before := openFDs(t)
		a, b := vfiousertest.Pair(t)
		p := vfiousertest.NewPeer(t, b)
		var wg sync.WaitGroup
		wg.Go(func() {
			q := p.Recv()
			p.Send(vfiousertest.Message{ID: q.ID, Command: 1, Flags: 1, Payload: []byte("\x00\x00\x00\x00" + tt.text + "\x00")}.Bytes(), tt.fds...)
		})
		c, err := vfiouser.NewClient(a, vfiouser.ClientConfig{TwinSocket: tt.asked})
		wg.Wait()
		if tt.bad != errors.Is(err, syscall.EPROTO) || !tt.bad && err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err == nil {
			c.Close()
		}
		b.Close()
		if after := openFDs(t); after > before {
			t.Errorf("%s: %d descriptors before, %d after", tt.name, before, after)
		}
	}
}

// TestTwinEnds ends a client whose server closes the twin alone: it could not be
// asked for memory any more.
func TestTwinEnds(t *testing.T) {
	a, b := vfiousertest.Pair(t)
	x, y := vfiousertest.Pair(t)
	p := vfiousertest.NewPeer(t, b)
	f, err := y.File()
	if err != nil {
		t.Fatal(err)
	}
	y.Close()
	go func() {
		q := p.Recv()
		p.Send(vfiousertest.Message{ID: q.ID, Command: 1, Flags: 1, Payload: []byte("\x00\x00\x00\x00" +
			`{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}` + "\x00")}.Bytes(), int(f.Fd()))
		f.Close()
		vfiousertest.NewPeer(t, x).Send(vfiousertest.Message{ID: 1, Command: 11, Flags: 1}.Bytes()) // a reply to nothing
		x.Close()
	}()
	c, err := vfiouser.NewClient(a, vfiouser.ClientConfig{TwinSocket: true})
	if err != nil && !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	if err != nil {
		return // the end was faster
	}
	select {
	case <-c.Done():
	case <-time.After(time.Minute):
		t.Error("the client goes on without a way to be asked")
	}
	c.Close()
	if err := c.Reset(); !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		t.Errorf("reset after the end: %v", err)
	}
}
