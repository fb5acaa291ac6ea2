// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"syscall"
	"time"

	"toebox/guestdriver"
)

// TestMM02_Mapped: memory that the application has mapped itself goes without a
// copy by the host, both ways, where the bus can map it for DMA; elsewhere the
// driver says that it cannot, and the same calls copy.
func TestMM02_Mapped(t *T) {
	const size = 256 << 10
	a := t.driver()
	mem, err := syscall.Mmap(-1, 0, 2*size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	check(t, "mmap", err)
	t.Cleanup(func() { check(t, "munmap", syscall.Munmap(mem)) })
	m, err := a.Map(mem)
	direct := t.Env.Rung == RungInproc || t.Env.Rung == RungVM
	if direct {
		check(t, "map for DMA", err)
		badMaps(t, a, mem)
	} else if !errors.Is(err, errors.ErrUnsupported) {
		t.Fatalf("map on a bus that cannot: %v", err)
	}
	_, conn := t.dialPeer(a, Script{{Op: OpEcho}})
	conn.(*guestdriver.Conn).SetReadAhead(false)
	check(t, "set a deadline", conn.SetDeadline(time.Now().Add(t.Env.scale(patience))))
	out, in := mem[:size], mem[size:]
	Payload(out, 38, 0)
	before, old := a.Stats(), t.copies(a)
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(out)
		wrote <- err
	}()
	_, err = io.ReadFull(conn, in)
	check(t, "read", err)
	check(t, "write", <-wrote)
	if !bytes.Equal(in, out) {
		t.Errorf("what came back differs")
	}
	s := a.Stats()
	want(t, "writes without a copy", s.DirectWrites-before.DirectWrites > 0, direct)
	want(t, "reads without a copy", s.DirectReads-before.DirectReads > 0, direct)
	if now := t.copies(a).since(old); direct {
		want(t, "bytes written and read in place, and copied", now.host+now.direct, 2*size)
		want(t, "writes with a copy", s.BufferedWrites-before.BufferedWrites, 0)
	} else {
		want(t, "bytes copied by the host", now.host, 2*size)
	}
	check(t, "close", conn.Close())
	if !direct {
		return
	}
	check(t, "deregister", m.Deregister())
	for range 3 { // and again: it is whole
		m, err := a.Map(mem)
		check(t, "map again", err)
		check(t, "deregister again", m.Deregister())
	}
}

// badMaps maps what must not be mapped; mem is mapped already.
func badMaps(t *T, a *guestdriver.Adapter, mem []byte) {
	t.Helper()
	for what, p := range map[string][]byte{
		"nothing": nil, "half a page": mem[:2048], "from within a page": mem[1:4097],
		"what is registered": mem[:4096],
	} {
		if _, err := a.Map(p); err == nil {
			t.Errorf("%s was mapped", what)
		}
	}
	if t.Env.Rung != RungVM {
		return
	}
	read, err := syscall.Mmap(-1, 0, 8192, syscall.PROT_READ, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	check(t, "mmap for reading", err)
	defer syscall.Munmap(read)
	if _, err := a.Map(read); !errors.Is(err, syscall.EFAULT) || !strings.Contains(err.Error(), "vfio") {
		t.Errorf("memory that is not to be written: %v", err)
	}
}
