// SPDX-License-Identifier: Apache-2.0

package vfiousertest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
)

// patience bounds every wait.
const patience = 60 * time.Second

// Pair returns the two ends of a connection.
func Pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var c [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		c[i] = conn.(*net.UnixConn)
		t.Cleanup(func() { conn.Close() })
	}
	return c[0], c[1]
}

// Serve serves dev on one end of a new connection until the test ends, and
// returns the server and the other end.
func Serve(t testing.TB, dev vfiouser.Device, cfg vfiouser.Config) (*vfiouser.Server, *net.UnixConn) {
	t.Helper()
	s, err := vfiouser.NewServer(dev, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, Connect(t, s)
}

// Connect has s serve one end of a new connection until the test ends and
// returns the other.
func Connect(t testing.TB, s *vfiouser.Server) *net.UnixConn {
	t.Helper()
	a, b := Pair(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeConn(ctx, b) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("the server does not end")
		}
	})
	return a
}

// Start serves dev until the test ends and returns the server and a client.
func Start(t testing.TB, dev vfiouser.Device, cfg vfiouser.Config, ccfg vfiouser.ClientConfig) (*vfiouser.Server, *vfiouser.Client) {
	t.Helper()
	s, conn := Serve(t, dev, cfg)
	c, err := vfiouser.NewClient(conn, ccfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return s, c
}

// Message is a message as a peer sees it.
type Message struct {
	ID, Command        uint16
	Size, Flags, Errno uint32
	Payload            []byte
}

// Flags of a message.
const (
	Reply   = 0x01
	NoReply = 0x10
	Failed  = 0x20
)

// Bytes returns the message encoded; Size is worked out.
func (m Message) Bytes() []byte {
	b := binary.NativeEndian.AppendUint16(nil, m.ID)
	b = binary.NativeEndian.AppendUint16(b, m.Command)
	b = binary.NativeEndian.AppendUint32(b, uint32(16+len(m.Payload)))
	b = binary.NativeEndian.AppendUint32(b, m.Flags)
	b = binary.NativeEndian.AppendUint32(b, m.Errno)
	return append(b, m.Payload...)
}

// Peer sends and expects bytes on a connection.
type Peer struct {
	t testing.TB
	c *net.UnixConn
}

// NewPeer returns a peer that speaks through c.
func NewPeer(t testing.TB, c *net.UnixConn) *Peer { return &Peer{t, c} }

// Conn returns the connection.
func (p *Peer) Conn() *net.UnixConn { return p.c }

// Send sends b in one sendmsg, with fds.
func (p *Peer) Send(b []byte, fds ...int) {
	p.t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	p.c.SetWriteDeadline(time.Now().Add(patience))
	n, _, err := p.c.WriteMsgUnix(b, oob, nil)
	if err != nil {
		p.t.Fatalf("send: %v", err)
	}
	for n < len(b) {
		k, err := p.c.Write(b[n:])
		if err != nil {
			p.t.Fatalf("send: %v", err)
		}
		n += k
	}
}

// Recv returns the next message.
func (p *Peer) Recv() Message {
	p.t.Helper()
	var h [16]byte
	p.read(h[:])
	return p.recvBody(h)
}

// recvBody returns the message that h opens.
func (p *Peer) recvBody(h [16]byte) Message {
	p.t.Helper()
	m := Message{
		ID:      binary.NativeEndian.Uint16(h[:]),
		Command: binary.NativeEndian.Uint16(h[2:]),
		Size:    binary.NativeEndian.Uint32(h[4:]),
		Flags:   binary.NativeEndian.Uint32(h[8:]),
		Errno:   binary.NativeEndian.Uint32(h[12:]),
	}
	if m.Size < 16 || m.Size > 128<<20 {
		p.t.Fatalf("message says that it has %d bytes", m.Size)
	}
	m.Payload = make([]byte, m.Size-16)
	p.read(m.Payload)
	return m
}

// RecvFDs returns the next message and the file descriptors that came with it,
// which are closed when the test ends.
func (p *Peer) RecvFDs() (Message, []*os.File) {
	p.t.Helper()
	// The kernel ends a read behind the bytes that descriptors came with, and a
	// header is in the first of those.
	var h [16]byte
	oob := make([]byte, unix.CmsgSpace(4*253))
	p.c.SetReadDeadline(time.Now().Add(patience))
	n, k, flags, _, err := p.c.ReadMsgUnix(h[:], oob)
	if err != nil || n == 0 || flags&unix.MSG_CTRUNC != 0 {
		p.t.Fatalf("receive: %d bytes, flags %#x, %v", n, flags, err)
	}
	var files []*os.File
	cmsgs, _ := unix.ParseSocketControlMessage(oob[:k])
	for i := range cmsgs {
		fds, _ := unix.ParseUnixRights(&cmsgs[i])
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "received")
			p.t.Cleanup(func() { f.Close() })
			files = append(files, f)
		}
	}
	p.read(h[n:])
	return p.recvBody(h), files
}

// DoFDs sends a command and returns the reply with its file descriptors.
func (p *Peer) DoFDs(m Message) (Message, []*os.File) {
	p.t.Helper()
	p.Send(m.Bytes())
	r, files := p.RecvFDs()
	if r.ID != m.ID || r.Command != m.Command || r.Flags&0xf != Reply {
		p.t.Fatalf("reply %+v to %+v", r, m)
	}
	return r, files
}

func (p *Peer) read(b []byte) {
	p.t.Helper()
	p.c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(p.c, b); err != nil {
		p.t.Fatalf("receive: %v", err)
	}
}

// Expect fails the test unless the next bytes are want.
func (p *Peer) Expect(want []byte) {
	p.t.Helper()
	got := make([]byte, len(want))
	p.read(got)
	if !bytes.Equal(got, want) {
		p.t.Fatalf("received\n%x, want\n%x", got, want)
	}
}

// ExpectEOF fails the test unless the other side has closed, with nothing left
// to read.
func (p *Peer) ExpectEOF() {
	p.t.Helper()
	p.c.SetReadDeadline(time.Now().Add(patience))
	var b [1]byte
	if n, err := p.c.Read(b[:]); n != 0 || err == nil || os.IsTimeout(err) {
		p.t.Fatalf("read %d bytes, %v; want the end", n, err)
	}
}

// Do sends a command and returns the reply.
func (p *Peer) Do(m Message, fds ...int) Message {
	p.t.Helper()
	p.Send(m.Bytes(), fds...)
	r := p.Recv()
	if r.ID != m.ID || r.Command != m.Command || r.Flags&0xf != Reply {
		p.t.Fatalf("reply %+v to %+v", r, m)
	}
	return r
}

// Version sends the version request of QEMU 11, or of the given JSON text, and
// returns the reply's.
func (p *Peer) Version(text ...string) string {
	p.t.Helper()
	if len(text) == 0 {
		text = []string{QEMUVersion}
	}
	r := p.Do(Message{ID: 1, Command: 1, Payload: append([]byte{0, 0, 0, 0}, text[0]+"\x00"...)})
	if r.Flags != Reply {
		p.t.Fatalf("version: %+v", r)
	}
	if len(r.Payload) == 4 {
		return ""
	}
	return string(bytes.TrimSuffix(r.Payload[4:], []byte{0}))
}

// QEMUVersion is the JSON text that QEMU 11.1 proposes.
const QEMUVersion = `{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, ` +
	`"max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}`

// Dial connects to a server that is about to listen at path, as soon as it does.
func Dial(t testing.TB, path string) *vfiouser.Client {
	t.Helper()
	for deadline := time.Now().Add(patience); ; <-time.After(time.Millisecond) {
		c, err := vfiouser.Dial(context.Background(), path, vfiouser.ClientConfig{Timeout: patience})
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		if time.Now().After(deadline) || !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
	}
}
