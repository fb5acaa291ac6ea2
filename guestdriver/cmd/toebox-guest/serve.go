// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/uio"
	"toebox/guestdriver/vfio"
)

// shutdownLimit bounds how long serve waits for requests in flight.
const shutdownLimit = 3 * time.Second

// serve runs the driver over an adapter until the context ends.
func serve(ctx context.Context, adapter int, socket string, args []string, io_ stdio) error {
	fs := newFlags("serve", "", io_)
	bdf := fs.String("device", "", "PCI address of the adapter, instead of its number")
	driver := fs.String("driver", "vfio", "vfio, or uio without an IOMMU")
	address := fs.String("http", ":80", "serve HTTP on this address of the adapter; \"\" for none")
	ready := fs.Int("ready-fd", -1, "write \"ready\\n\" to this descriptor when all is up")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	a, err := open(ctx, *driver, adapter, *bdf)
	if err != nil {
		return err
	}
	defer a.Close()

	l, err := listenLocal(socket)
	if err != nil {
		return err
	}
	defer l.Close()
	local := localServer{net: a, in: a, driverStats: func() []string { return driverStats(a.Stats()) }}
	errs := make(chan error, 2)
	ended := make(chan struct{})
	go func() {
		errs <- local.serve(ctx, l)
		close(ended)
	}()
	srv := &http.Server{
		Handler:           newHandler(a, "/proc"),
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       2 * time.Minute,
	}
	if *address != "" {
		hl, err := a.Listen("tcp", *address)
		if err != nil {
			return err
		}
		go func() { errs <- srv.Serve(hl) }()
	}
	if err := tellReady(*ready); err != nil {
		return err
	}
	select {
	case err = <-errs:
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownLimit)
	defer cancel()
	if srv.Shutdown(limit) != nil {
		srv.Close()
	}
	l.Close()
	select {
	case <-ended:
	case <-limit.Done():
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// buses opens an adapter through the kernel's drivers, by their names here; it
// gives the adapter to the driver first.
func buses() map[string]func(bdf string) (guestdriver.Bus, error) {
	return map[string]func(bdf string) (guestdriver.Bus, error){
		"vfio": func(bdf string) (guestdriver.Bus, error) {
			if err := vfio.Bind(bdf); err != nil {
				return nil, err
			}
			return vfio.Open(bdf)
		},
		"uio": func(bdf string) (guestdriver.Bus, error) {
			if err := uio.Bind(bdf); err != nil {
				return nil, err
			}
			return uio.Open(bdf, uio.Options{})
		},
	}
}

// open gives an adapter to a driver of the kernel, if it has not it yet, and
// starts ours.
func open(ctx context.Context, driver string, adapter int, bdf string) (*guestdriver.Adapter, error) {
	openBus, ok := buses()[driver]
	if !ok {
		return nil, usageError{fmt.Errorf("driver %q: want vfio or uio", driver)}
	}
	if bdf == "" {
		found, err := vfio.List()
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, errors.New("this machine has no adapter (PCI function 1234:7422)")
		}
		if adapter >= len(found) {
			return nil, usageError{fmt.Errorf("adapter %d: this machine has %d, counted from 0", adapter, len(found))}
		}
		bdf = found[adapter].BDF
	}
	bus, err := openBus(bdf)
	if err != nil {
		return nil, err
	}
	a, err := guestdriver.Open(ctx, bus, guestdriver.Options{Mode: guestdriver.ModeHybrid})
	if err != nil {
		bus.Close()
		return nil, fmt.Errorf("start the driver on %s: %w", bdf, err)
	}
	return a, nil
}

// listenLocal listens on the local socket, replacing one that a dead process
// left behind.
func listenLocal(socket string) (*net.UnixListener, error) {
	addr := &net.UnixAddr{Net: "unix", Name: socket}
	if c, err := net.DialUnix("unix", nil, addr); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s: a driver is running already", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", addr)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func tellReady(fd int) error {
	if fd < 0 {
		return nil
	}
	f := os.NewFile(uintptr(fd), "ready")
	if f == nil {
		return usageError{fmt.Errorf("ready-fd %d is not open", fd)}
	}
	defer f.Close()
	if _, err := f.WriteString("ready\n"); err != nil {
		return fmt.Errorf("ready-fd: %w", err)
	}
	return nil
}

// list prints the adapters of this machine.
func list(_ context.Context, _ string, args []string, io_ stdio) error {
	fs := newFlags("ls", "", io_)
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	found, err := vfio.List()
	if err != nil {
		return err
	}
	for _, f := range found {
		fmt.Fprintf(io_.out, "%s 1234:7422 driver %s, IOMMU group %s\n", f.BDF, orNone(f.Driver), orNone(f.Group))
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
