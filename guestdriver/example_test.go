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
