// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// ramMemory serves DMA messages from a slice at iova 0.
type ramMemory struct {
	mu  sync.Mutex
	b   []byte
	max int
}

func (m *ramMemory) ReadDMA(iova uint64, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if iova+uint64(len(p)) > uint64(len(m.b)) {
		return syscall.EFAULT
	}
	m.max = max(m.max, len(p))
	copy(p, m.b[iova:])
	return nil
}

func (m *ramMemory) WriteDMA(iova uint64, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if iova+uint64(len(p)) > uint64(len(m.b)) {
		return syscall.EPERM
	}
	copy(m.b[iova:], p)
	return nil
}

// TestMessageDMA reaches memory without a file.
func TestMessageDMA(t *testing.T) {
	m := &ramMemory{b: pattern(0x40000)}
	cfg := vfiousertest.Config()
	dev := vfiousertest.NewDevice(cfg)
	srv, c := vfiousertest.Start(t, dev, cfg, vfiouser.ClientConfig{Memory: m, MaxTransfer: 0x3000})
	d := srv.DMA()
	f := filled(t, 0x1000)
	if err := errors.Join(c.Map(0, 0x20000, 0, rd|wr, nil), c.Map(0x20000, 0x1000, 0, rd|wr, f), c.Map(0x21000, 0x30000, 0, rd, nil)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 0x22000-8)
	if err := d.Read(8, b); err != nil {
		t.Fatal(err)
	}
	w := pattern(0x40000)
	if !bytes.Equal(b, slices.Concat(w[8:0x20000], w[:0x1000], w[0x21000:0x22000])) {
		t.Error("read over messages and a file differs")
	}
	err := d.Write(0x1fffe, []byte("abcd"))
	m.mu.Lock()
	if err != nil || string(m.b[0x1fffe:0x20000]) != "ab" {
		t.Errorf("write: %v", err)
	}
	if m.max > 0x3000 {
		t.Errorf("a message of %#x bytes", m.max)
	}
	m.mu.Unlock()
	errno(t, "write to read-only", d.Write(0x21000, []byte{1}), 0x21000, syscall.EACCES)
	errno(t, "what the client refuses", d.Read(0x3fffc, make([]byte, 8)), 0x3fffc, syscall.EFAULT)
	if d.Backed(0, 1, rd) {
		t.Error("memory without a file is backed")
	}
	// From a device call it cannot work, and says so at once.
	inside := make(chan error, 1)
	dev.SetHooks(vfiousertest.Hooks{Write: func(int, uint64, []byte) error { inside <- d.Read(0, make([]byte, 4)); return nil }})
	if err := c.WriteRegion(0, 0, []byte{1}); err != nil {
		t.Error(err)
	}
	errno(t, "message from a device call", <-inside, 0, syscall.EDEADLK)
	// Many at a time.
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			b := make([]byte, 100)
			for k := range 50 {
				a := uint64(i*1000 + k)
				if err := d.Read(a, b); err != nil || !bytes.Equal(b, w[a:a+100]) {
					t.Errorf("read at %#x: %v", a, err)
				}
			}
		})
	}
	wg.Wait()
	c.Close()
	<-dev.Gone
	errno(t, "read without a client", d.Read(0, b[:1]), 0, syscall.EFAULT)
}

// TestMessageReplies has the client answer DMA messages in all the ways that
// clients do, and some that none should.
func TestMessageReplies(t *testing.T) {
	serve := func(timeout time.Duration) (*vfiouser.Server, *vfiousertest.Peer) {
		cfg := vfiousertest.Config()
		cfg.DMATimeout = timeout
		srv, conn := vfiousertest.Serve(t, vfiousertest.NewDevice(cfg), cfg)
		p := vfiousertest.NewPeer(t, conn)
		p.Version()
		expect(t, p.Do(dmaMap(1, 0, 0x1000, 0x1000)), 0)
		return srv, p
	}
	patientServer, patientPeer := serve(time.Minute)
	hastyServer, hastyPeer := serve(50 * time.Millisecond)
	const head = "0010000000000000"
	for _, tt := range []struct {
		name    string
		cmd     uint16
		replies []string // payload in hex; "errno N"; "none"
		want    syscall.Errno
	}{
		{"read", 11, []string{head + "0400000000000000 61626364"}, 0},
		{"read short, then the rest", 11, []string{head + "0100000000000000 61", "0110000000000000 0300000000000000 626364"}, 0},
		{"read of nothing", 11, []string{head + "0000000000000000"}, syscall.EIO},
		{"read with too little data", 11, []string{head + "0400000000000000 616263"}, syscall.EIO},
		{"read with too high a count", 11, []string{head + "0500000000000000 6162636465"}, syscall.EIO},
		{"read with half a payload", 11, []string{head}, syscall.EIO},
		{"read with the header alone", 11, []string{""}, syscall.EIO},
		{"read refused", 11, []string{"errno 13"}, syscall.EACCES},
		{"read refused with 0", 11, []string{"errno 0"}, syscall.EIO},
		{"read refused with nonsense", 11, []string{"errno 4096"}, syscall.EIO},
		{"write", 12, []string{head + "0400000000000000"}, 0},
		{"write, count of 4 bytes", 12, []string{head + "04000000"}, 0},
		{"write, header alone", 12, []string{""}, 0},
		{"write short, then the rest", 12, []string{head + "0300000000000000", "0310000000000000 0100000000000000"}, 0},
		{"write with too high a count", 12, []string{head + "0500000000000000"}, syscall.EIO},
		{"write with half a payload", 12, []string{head + "0400"}, syscall.EIO},
		{"write refused", 12, []string{"errno 5"}, syscall.EIO},
		{"no answer", 11, []string{"none"}, syscall.ETIMEDOUT},
		{"no answer to a write", 12, []string{"none"}, syscall.ETIMEDOUT},
	} {
		b := []byte("abcd")
		if tt.cmd == 11 {
			b = make([]byte, 4)
		}
		srv, p := patientServer, patientPeer
		if tt.want == syscall.ETIMEDOUT {
			srv, p = hastyServer, hastyPeer
		}
		done := make(chan error, 1)
		go func() {
			if tt.cmd == 11 {
				done <- srv.DMA().Read(0x1000, b)
			} else {
				done <- srv.DMA().Write(0x1000, b)
			}
		}()
		at := byte(0) // place in b, as the server asks for it
		for i, reply := range tt.replies {
			q := p.Recv()
			want := append([]byte{at, 0x10, 0, 0, 0, 0, 0, 0, 4 - at, 0, 0, 0, 0, 0, 0, 0}, "abcd"[at:]...)
			if tt.cmd == 11 {
				want = want[:16]
			}
			if q.Command != tt.cmd || q.Flags != 0 || q.Errno != 0 || !bytes.Equal(q.Payload, want) {
				t.Errorf("%s: request %d is %+v", tt.name, i, q)
			}
			r := vfiousertest.Message{ID: q.ID, Command: q.Command, Flags: vfiousertest.Reply}
			var n uint32
			if k, _ := fmt.Sscanf(reply, "errno %d", &n); k == 1 {
				r.Flags |= vfiousertest.Failed
				r.Errno = n
			} else if reply != "none" {
				r.Payload = unhex(t, reply)
			}
			if reply == "none" {
				// Neither one that has the wrong command, nor a late one.
				r.Command = 23 - r.Command
				p.Send(r.Bytes())
				errno(t, tt.name, <-done, 0x1000, tt.want)
				r.Command = q.Command
				done <- nil
			}
			p.Send(r.Bytes())
			if len(r.Payload) > 8 {
				at = r.Payload[8]
			}
		}
		err := <-done
		switch {
		case tt.want == syscall.ETIMEDOUT:
		case tt.want != 0:
			errno(t, tt.name, err, 0x1000, tt.want)
		case err != nil || string(b) != "abcd":
			t.Errorf("%s: %q, %v", tt.name, b, err)
		}
	}
	// The client goes while an access waits.
	done := make(chan error, 1)
	go func() { done <- patientServer.DMA().Read(0x1000, make([]byte, 4)) }()
	patientPeer.Recv()
	patientPeer.Conn().Close()
	errno(t, "client gone", <-done, 0x1000, syscall.EFAULT)
}

// TestDribble: a client that answers each message, but moves one byte with it, does
// not hold an access up for longer than the access's own bound.
func TestDribble(t *testing.T) {
	cfg := vfiousertest.Config()
	cfg.DMATimeout = 50 * time.Millisecond
	srv, conn := vfiousertest.Serve(t, vfiousertest.NewDevice(cfg), cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	expect(t, p.Do(dmaMap(1, 0, 0, 0x10000)), 0)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		request := make([]byte, 32) // header, address, count
		for {
			if _, err := io.ReadFull(conn, request); err != nil {
				return
			}
			reply := append(append([]byte{}, request...), 'x')
			reply[4], reply[8] = 33, 1 // size; a reply
			copy(reply[24:], []byte{1, 0, 0, 0, 0, 0, 0, 0})
			if _, err := conn.Write(reply); err != nil {
				return
			}
		}
	}()
	// At no speed that there is do 65,535 round trips fit.
	err := srv.DMA().Read(0, make([]byte, 0xffff))
	if !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("%v, want ETIMEDOUT", err)
	}
	conn.Close()
	<-ended
}
