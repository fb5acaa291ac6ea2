// SPDX-License-Identifier: Apache-2.0

package edu_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/edu"
)

// The device is served on a socket, where QEMU would connect; here a client
// reads its identification.
func Example() {
	dir, err := os.MkdirTemp("", "edu")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	dev, err := edu.New(edu.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer dev.Close()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- dev.Server().Serve(ctx, l) }()

	c, err := vfiouser.Dial(ctx, path, vfiouser.ClientConfig{})
	if err != nil {
		log.Fatal(err)
	}
	id := make([]byte, 4)
	if err := c.ReadRegion(vfiouser.RegionBAR0, 0, id); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("% x\n", id)

	c.Close()
	cancel()
	if err := <-served; err != nil {
		log.Fatal(err)
	}
	// Output: ed 00 00 01
}
