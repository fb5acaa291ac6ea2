// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"slices"
	"testing"

	"toebox/vfio-user/vfiousertest"
)

// TestHostileServer: a server whose answers make no sense is ended; the client
// gets errors or a better server's answer, never nonsense.
func TestHostileServer(t *testing.T) {
	read := vfiousertest.Message{ID: 100, Command: 9, Payload: unhex(t, "1000000000000000 00000000 04000000")}
	for name, play := range map[string]func(p *vfiousertest.Peer, m vfiousertest.Message){
		"short":      func(p *vfiousertest.Peer, m vfiousertest.Message) { answer(p, m, m.Payload) },
		"long":       func(p *vfiousertest.Peer, m vfiousertest.Message) { answer(p, m, make([]byte, 4096)) },
		"other id":   func(p *vfiousertest.Peer, m vfiousertest.Message) { m.ID++; answer(p, m, m.Payload) },
		"other kind": func(p *vfiousertest.Peer, m vfiousertest.Message) { m.Command = 2; answer(p, m, nil) },
		"type": func(p *vfiousertest.Peer, m vfiousertest.Message) {
			p.Send(vfiousertest.Message{ID: m.ID, Command: 9, Flags: 3}.Bytes())
		},
		"size": func(p *vfiousertest.Peer, m vfiousertest.Message) {
			b := vfiousertest.Message{ID: m.ID, Command: 9, Flags: 1}.Bytes()
			binary.NativeEndian.PutUint32(b[4:], 3)
			p.Send(b)
		},
		"huge": func(p *vfiousertest.Peer, m vfiousertest.Message) {
			b := vfiousertest.Message{ID: m.ID, Command: 9, Flags: 1}.Bytes()
			binary.NativeEndian.PutUint32(b[4:], 1<<31)
			p.Send(b)
		},
		"half": func(p *vfiousertest.Peer, m vfiousertest.Message) {
			p.Send(read.Bytes()[:10])
			p.Conn().Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			r := start(t, f.config())
			client, server := r.connect(f)
			client.Send(read.Bytes())
			m := server.Recv()
			next := f.peer()
			play(server, m)
			go func() {
				answers(t, next, agreed)
				if name != "short" && name != "long" {
					m := next.Recv()
					answer(next, m, append(slices.Clone(m.Payload), 1, 2, 3, 4))
				}
			}()
			if m := client.Recv(); m.ID != 100 || m.Errno != 5 && !bytes.Equal(m.Payload[16:], []byte{1, 2, 3, 4}) {
				t.Errorf("%+v", m)
			}
			r.ready(2)
		})
	}
}

// TestServerCommands: what a server may not ask is refused.
func TestServerCommands(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	client, server := r.connect(f)
	for _, tt := range []struct {
		cmd     uint16
		payload string
		errno   uint32
	}{
		{9, "0000000000000000 00000000 04000000", 95},
		{11, "0000000000000000", 22},
		{11, "0000000000000000 0000020000000000", 7},
		{11, "0000000000000000 0400000000000000 00", 22},
		{12, "0000000000000000 0400000000000000 000000", 22},
	} {
		if m := server.Do(vfiousertest.Message{ID: 3, Command: tt.cmd, Payload: unhex(t, tt.payload)}); m.Errno != tt.errno {
			t.Errorf("%+v: %+v", tt, m)
		}
	}
	// And what it may reaches the client, refusal and all.
	server.Send(vfiousertest.Message{ID: 3, Command: 12, Payload: unhex(t, "0010000000000000 0200000000000000 abcd")}.Bytes())
	m := client.Recv()
	if m.Command != 12 || !bytes.Equal(m.Payload, unhex(t, "0010000000000000 0200000000000000 abcd")) {
		t.Errorf("%+v", m)
	}
	client.Send(vfiousertest.Message{ID: m.ID, Command: 12, Flags: 0x21, Errno: 14}.Bytes())
	if m := server.Recv(); m.ID != 3 || m.Flags != 0x21 || m.Errno != 14 {
		t.Errorf("%+v", m)
	}
	client.Send(vfiousertest.Message{ID: m.ID, Command: 12, Flags: 1}.Bytes()) // again
	eventually(t, "the stray reply", func() bool { return r.k.Stats().StaleReplies == 1 })
}

// TestHostileClient: any message gets an answer, and nothing is kept of it.
func TestHostileClient(t *testing.T) {
	f := newFakes(t)
	r := start(t, f.config())
	f.device(plain())
	a, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	p := vfiousertest.NewPeer(t, a.(*net.UnixConn))
	if m := p.Do(vfiousertest.Message{ID: 1, Command: 9, Payload: make([]byte, 16)}); m.Errno != 22 {
		t.Errorf("before the version: %+v", m)
	}
	for _, bad := range []string{"", "00", "00000000 7b", "00000000 7b7d", "00000000 7b00"} {
		if m := p.Do(vfiousertest.Message{ID: 1, Command: 1, Payload: unhex(t, bad)}); m.Errno != 22 {
			t.Errorf("version %s: %+v", bad, m)
		}
	}
	p.Version()
	file := vfiousertest.Memory(t, 4096)
	fd := int(file.Fd())
	pipe, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer end.Close()
	for _, tt := range []struct {
		name    string
		cmd     uint16
		payload string
		fds     []int
		errno   uint32
	}{
		{"version again", 1, "00000000", nil, 22},
		{"unknown", 99, "", nil, 95},
		{"map, short", 2, "20000000", nil, 22},
		{"map, argsz", 2, "1f000000 03000000 0000000000000000 0000000000000000 0010000000000000", nil, 22},
		{"map, flags", 2, "20000000 10000000 0000000000000000 0000000000000000 0010000000000000", nil, 22},
		{"map, two files", 2, "20000000 03000000 0000000000000000 0000000000000000 0010000000000000", []int{fd, fd}, 22},
		{"map, a pipe", 2, "20000000 03000000 0000000000000000 0000000000000000 0010000000000000", []int{int(end.Fd())}, 13},
		{"unmap, short", 3, "18000000", nil, 22},
		{"unmap, flags", 3, "18000000 04000000 0000000000000000 0010000000000000", nil, 22},
		{"unmap, all of a range", 3, "18000000 02000000 0000000000000000 0010000000000000", nil, 22},
		{"irq, short", 8, "14000000", nil, 22},
		{"irq, two actions", 8, "14000000 31000000 02000000 00000000 01000000", nil, 22},
		{"irq, range", 8, "14000000 24000000 02000000 ffffffff 02000000", nil, 22},
		{"irq, fds", 8, "14000000 24000000 02000000 00000000 01000000", []int{fd, fd}, 22},
		{"irq, no bools", 8, "14000000 22000000 02000000 00000000 04000000", nil, 22},
		{"irq, no eventfd", 8, "14000000 24000000 02000000 00000000 01000000", []int{fd}, 22},
		{"read, short", 9, "0000000000000000", nil, 22},
		{"read, huge", 9, "0000000000000000 00000000 ffffffff", nil, 7},
		{"read, beyond", 9, "ffffffffffffffff 00000000 04000000", nil, 22},
		{"read with a file", 9, "0000000000000000 00000000 04000000", []int{fd}, 22},
		{"write, count", 10, "0000000000000000 00000000 04000000 00", nil, 22},
		{"write, config beyond", 10, "ff0f000000000000 07000000 04000000 00000000", nil, 22},
		{"write, config far beyond", 10, "ffffffffffffffff 07000000 04000000 00000000", nil, 22},
		{"multi, count", 15, "0200000000000000", nil, 22},
		{"multi, huge count", 15, "abaaaaaaaaaaaa0a 0000000000000000", nil, 22},
		{"feature", 16, "08000000 01000100", nil, 25},
	} {
		m := p.Do(vfiousertest.Message{ID: 77, Command: tt.cmd, Payload: unhex(t, tt.payload)}, tt.fds...)
		if m.Errno != tt.errno {
			t.Errorf("%s: errno %d, want %d", tt.name, m.Errno, tt.errno)
		}
	}
	var none []byte
	for range 3000 {
		// No answer is wanted, and none given.
		none = append(none, vfiousertest.Message{ID: 1, Command: 2, Flags: vfiousertest.NoReply, Payload: make([]byte, 8)}.Bytes()...)
	}
	p.Send(none)
	long := vfiousertest.Message{ID: 8, Command: 10, Payload: make([]byte, 2<<20)}
	if m := p.Do(long); m.Errno != 7 {
		t.Errorf("2 MiB: %+v", m)
	}
	if s := r.k.Stats(); s.Maps != 0 || s.Files != 0 || s.Starts != 1 {
		t.Errorf("%+v", s)
	}
}
