// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

// A server and a client over one adapter. In a guest the bus is one of package
// vfio or uio.
func Example() {
	a, err := guestdriver.Open(context.Background(), guestdrivertest.New(), guestdriver.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	l, err := a.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			log.Print(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "served by the adapter")
	}()
	c, err := a.Dial("tcp", "10.0.2.15:80")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	fmt.Println(string(b), err)
	// Output: served by the adapter <nil>
}

// A driver of one's own: bring the adapter up by its registers, create a
// queue, post a request over a control buffer, read the response.
func ExampleQueue() {
	bus := guestdrivertest.New()
	defer bus.Close()
	const command, busMaster = 0x04, 1 << 2
	v, err := bus.ReadConfig(command, 2)
	if err != nil {
		log.Fatal(err)
	}
	if err := bus.WriteConfig(command, 2, v|busMaster); err != nil {
		log.Fatal(err)
	}
	if err := bus.EnableVectors(2); err != nil {
		log.Fatal(err)
	}
	bus.Write32(abi.BARRegisters, abi.RegControl, abi.ControlRun)
	for bus.Read32(abi.BARRegisters, abi.RegStatus)&abi.StatusRunning == 0 {
	}
	q, err := guestdriver.NewQueue(bus, 0, guestdriver.QueueConfig{InLog2: 4, OutLog2: 4})
	if err != nil {
		log.Fatal(err)
	}

	// An adapter attribute control with one tuple: get MAC.
	m, err := bus.AllocDMA(4096)
	if err != nil {
		log.Fatal(err)
	}
	request := abi.AppendTuple(nil, false, abi.AttrMAC, make([]byte, 6))
	copy(m.Bytes, request)
	err = q.Post(abi.Fields{
		Type: abi.TypeAdapterAttr, Aux: 1, Tag: 1, Base: m.IOVA, Length: uint32(len(request)),
	})
	if err != nil {
		log.Fatal(err)
	}
	r, err := q.Next(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	tuple, _, _ := abi.NextTuple(m.Bytes[:len(request)], 0)
	fmt.Println("tag", r.Tag, abi.Status(r.Aux))
	fmt.Println("MAC", net.HardwareAddr(tuple.Value))

	if err := q.Destroy(context.Background()); err != nil {
		log.Fatal(err)
	}
	// Output:
	// tag 1 adapter: OK
	// MAC 52:54:00:01:02:03
}

// Send and receive without a copy: memory is registered once, parts of it are
// posted, and a completion queue says when they are free again. Here the other
// end sends everything back.
func ExampleConn_PostBuffer() {
	ctx := context.Background()
	a, err := guestdriver.Open(ctx, guestdrivertest.New(), guestdriver.Options{NoReadAhead: true})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	c, err := a.Dial("tcp", "10.0.2.2:7")
	if err != nil {
		log.Fatal(err)
	}
	conn := c.(*guestdriver.Conn)
	defer conn.Close()

	m, err := a.Alloc(8192)
	if err != nil {
		log.Fatal(err)
	}
	out, _ := m.Buffer(0, 4096)
	in, _ := m.Buffer(4096, 4096)
	q := guestdriver.NewCompletionQueue()
	if err := conn.PostBuffer(in, q); err != nil { // the adapter's from here on
		log.Fatal(err)
	}
	if err := out.SetLen(copy(out.Bytes(), "zero copies")); err != nil {
		log.Fatal(err)
	}
	if err := conn.SendBuffer(out, q); err != nil {
		log.Fatal(err)
	}
	for sent, got := false, 0; !sent || got < len(out.Bytes()); {
		d, err := q.Next(ctx)
		if err != nil || d.Err != nil {
			log.Fatal(err, d.Err)
		}
		switch d.Op {
		case guestdriver.OpSend:
			sent = d.Final
		case guestdriver.OpReceive:
			got += d.N
		}
	}
	fmt.Printf("%s: %d bytes copied\n", in.Bytes()[:len(out.Bytes())], a.Stats().HostCopyBytes)
	// Output: zero copies: 0 bytes copied
}

// Read and Write as ever, of registered memory: they go without a copy by
// themselves, if there is enough of it, and return when the memory is the
// caller's again.
func ExampleMemory() {
	a, err := guestdriver.Open(context.Background(), guestdrivertest.New(), guestdriver.Options{ZeroCopy: 4096})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	c, err := a.Dial("tcp", "10.0.2.2:7")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	m, err := a.Alloc(64 << 10)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := c.Write(m.Bytes()); err != nil {
		log.Fatal(err)
	}
	fmt.Println(a.Stats().DirectWrites, "write and", a.Stats().HostCopyBytes, "bytes copied")
	// Output: 1 write and 0 bytes copied
}

// Several consumers of what comes: each has a segment of its own, and the buffer
// is posted again when all are released.
func ExampleConn_ReadSegment() {
	a, err := guestdriver.Open(context.Background(), guestdrivertest.New(), guestdriver.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	c, err := a.Dial("tcp", "10.0.2.2:7")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "news")
	s, err := c.(*guestdriver.Conn).ReadSegment()
	if err != nil {
		log.Fatal(err)
	}
	read := make(chan string)
	for range 2 {
		mine, err := s.Retain()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			read <- string(mine.Bytes())
			mine.Release()
		}()
	}
	s.Release()
	fmt.Println(<-read, <-read)
	// Output: news news
}

// A connection carries records: the length of a name, the name, and ten bytes of
// payload. The driver looks at the header, and has the payload go to another
// connection; its bytes are nobody's but the adapter's until then.
func ExampleConn_PeekBuffer() {
	ctx := context.Background()
	a, err := guestdriver.Open(ctx, guestdrivertest.New(), guestdriver.Options{NoReadAhead: true})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	c, err := a.Dial("tcp", "10.0.2.2:7") // it sends everything back
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	conn := c.(*guestdriver.Conn)
	d := a.Dialer()
	d.Near = conn
	other, err := d.Dial("tcp", "10.0.2.2:7")
	if err != nil {
		log.Fatal(err)
	}
	defer other.Close()
	io.WriteString(c, "\x04news0123456789")

	m, err := a.Alloc(64)
	if err != nil {
		log.Fatal(err)
	}
	head, _ := m.Buffer(0, 5)
	q := guestdriver.NewCompletionQueue()
	if err := conn.PeekBuffer(head, 0, q); err != nil {
		log.Fatal(err)
	}
	if d, err := q.Next(ctx); err != nil || d.Err != nil || d.N < 5 { // fewer: peek again
		log.Fatal(d, err)
	}
	name := string(head.Bytes()[1:])
	r := &guestdriver.Redirect{To: other.(*guestdriver.Conn), Skip: 1 + len(name), N: 10}
	if err := conn.PostRedirect(r, q); err != nil {
		log.Fatal(err)
	}
	payload := make([]byte, 10)
	if _, err := io.ReadFull(other, payload); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", name, payload)
	// Output: news: 0123456789
}
