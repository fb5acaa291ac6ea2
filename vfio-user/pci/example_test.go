// SPDX-License-Identifier: Apache-2.0

package pci_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/pci"
)

// The smallest device: a counter in BAR0 that counts reads, and interrupts at
// each tenth.
func Example() {
	var f *pci.Function
	count := uint32(0)
	f, err := pci.New(pci.Config{
		Vendor: 0x1234, Device: 0xcafe, Class: 0xff0000, Pin: 1,
		BARs: [6]pci.BAR{{Size: 4096, Read: func(offset uint64, p []byte) {
			clear(p)
			if offset == 0 && len(p) == 4 {
				count++
				binary.LittleEndian.PutUint32(p, count)
				if count%10 == 0 {
					f.Signal(0)
				}
			}
		}}},
		Capabilities: []pci.Capability{pci.PM{}, pci.Express{}, pci.MSIX{Vectors: 1, BAR: 1}},
	})
	if err != nil {
		log.Fatal(err)
	}
	server, err := vfiouser.NewServer(f, f.ServerConfig())
	if err != nil {
		log.Fatal(err)
	}
	f.Connect(server)

	// Serve it where QEMU, or here a client of ours, connects.
	ctx, cancel := context.WithCancel(context.Background())
	path, served := serve(ctx, server)
	c, err := vfiouser.Dial(ctx, path, vfiouser.ClientConfig{})
	if err != nil {
		log.Fatal(err)
	}
	p := make([]byte, 4)
	for _, err := range []error{
		c.WriteRegion(vfiouser.RegionConfig, 4, []byte{2}), // memory space on
		c.ReadRegion(vfiouser.RegionBAR0, 0, p),
		c.ReadRegion(vfiouser.RegionBAR0, 0, p),
	} {
		if err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(binary.LittleEndian.Uint32(p))
	c.Close()
	cancel()
	<-served
	// Output: 2
}

// serve listens in a folder of its own until ctx ends.
func serve(ctx context.Context, server *vfiouser.Server) (path string, served chan struct{}) {
	dir, err := os.MkdirTemp("", "pci")
	if err != nil {
		log.Fatal(err)
	}
	path, served = filepath.Join(dir, "socket"), make(chan struct{})
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		defer close(served)
		if err := server.Serve(ctx, l); err != nil {
			log.Print(err)
		}
		l.Close()
		os.RemoveAll(dir)
	}()
	return path, served
}

// A device with registers that act, messages or INTx as the driver likes, and
// resets: the driver writes a number, the device adds it up and signals.
func ExampleConfig() {
	sum := uint64(0)
	var f *pci.Function
	f, err := pci.New(pci.Config{
		Vendor: 0x1234, Device: 0xadde, Class: 0xff0000, Pin: 1,
		BARs: [6]pci.BAR{{
			Kind: pci.Memory64, Size: 4096,
			Read: func(_ uint64, p []byte) { f.SetINTx(false); clear(p); p[0] = byte(sum) },
			Write: func(_ uint64, p []byte) {
				for _, v := range p {
					sum += uint64(v)
				}
				f.Signal(0)
			},
		}},
		Capabilities: []pci.Capability{
			pci.At(0x40, pci.PM{}), pci.Express{FLR: true}, pci.MSI{}, pci.Vendor{Size: 8, Fields: []pci.Field{
				{Offset: 4, Width: 4, Writable: 0xff, Written: func(v uint64) { fmt.Println("vendor register:", v) }},
			}},
			pci.DSN{Serial: 0x0200_00ff_fe00_0001}, pci.AER{},
		},
		Changed: func(_, now pci.State) { fmt.Println("bus master:", now.Master) },
		Reset:   func(pci.ResetKind) { sum = 0 },
	})
	if err != nil {
		log.Fatal(err)
	}
	at, _ := f.Find(0x09, false)
	for _, err := range []error{
		f.WriteRegion(vfiouser.RegionConfig, uint64(at)+4, []byte{7, 0, 0, 0}),
		f.WriteRegion(vfiouser.RegionConfig, 4, []byte{6, 0}),
		f.WriteRegion(vfiouser.RegionBAR0, 0, []byte{40, 2}),
		f.Reset(),
	} {
		if err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println("sum:", sum)
	// Output:
	// vendor register: 7
	// bus master: true
	// bus master: false
	// sum: 0
}
