// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/vfio"
)

// adapterMemory bounds the DMA memory of each of the two adapters, in bytes, which
// share the guest's huge pages.
const adapterMemory = 8 << 20

// transferPatience bounds all of a fail-over: two drivers start, and bytes go.
const transferPatience = 90 * time.Second

// failover has two adapters take over from each other while bytes go to an echo
// and come back: twice, so that each has done it.
func failover(ctx context.Context, echo string, total int) (err error) {
	ctx, cancel := context.WithTimeout(ctx, transferPatience)
	defer cancel()
	all, err := vfio.List()
	if err != nil {
		return err
	}
	if len(all) != 2 {
		return fmt.Errorf("found %d adapters, need two", len(all))
	}
	var adapters []*guestdriver.Adapter
	for _, f := range all {
		if err := vfio.Bind(f.BDF); err != nil {
			return err
		}
		bus, err := vfio.Open(f.BDF)
		if err != nil {
			return err
		}
		a, err := guestdriver.Open(ctx, bus, guestdriver.Options{Memory: adapterMemory, CarryOver: true})
		if err != nil {
			return errors.Join(err, bus.Close())
		}
		defer func() { err = errors.Join(err, a.Close()) }()
		adapters = append(adapters, a)
	}
	g, err := guestdriver.NewGroup(adapters...)
	if err != nil {
		return err
	}
	c, err := g.DialContext(ctx, "tcp", echo)
	if err != nil {
		return err
	}
	defer c.Close()
	if end, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(end); err != nil {
			return err
		}
	}
	before := c.LocalAddr().String()
	// Some bytes are left for the time after, so that both have carried over what
	// they took when all are back.
	most := total - total/6
	sent := make(chan error, 1)
	last := make(chan struct{})
	go func() {
		err := sendPattern(c, 0, most)
		if err == nil {
			select {
			case <-last:
				err = sendPattern(c, most, total)
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		sent <- err
	}()
	for i, a := range adapters {
		if err := readPattern(c, i*total/3, (i+1)*total/3); err != nil {
			return err
		}
		other := adapters[1-i]
		if err := g.Rejoin(other); err != nil {
			return err
		}
		began := time.Now()
		if err := g.Failover(ctx, a); err != nil {
			return err
		}
		fmt.Printf("failover %d: %v\n", i+1, time.Since(began).Round(time.Millisecond))
	}
	close(last)
	if err := readPattern(c, 2*total/3, total); err != nil {
		return err
	}
	if err := <-sent; err != nil {
		return err
	}
	for i, a := range adapters {
		if s := a.Stats(); s.CarriedOver != 1 || s.CarryFailed != 0 || s.TakenOver != 1 {
			return fmt.Errorf("adapter %d: %d carried over, %d failed, %d taken over", i, s.CarriedOver, s.CarryFailed, s.TakenOver)
		}
	}
	if after := c.LocalAddr().String(); after != before {
		return fmt.Errorf("the connection was at %s and is at %s", before, after)
	}
	fmt.Printf("failover: %d bytes each way\n", total)
	return nil
}

func patternAt(i int) byte { return byte(uint32(i) * 2654435761 >> 23) }

func sendPattern(c net.Conn, from, to int) error {
	b := make([]byte, 50_000)
	for off := from; off < to; off += len(b) {
		b = b[:min(len(b), to-off)]
		for i := range b {
			b[i] = patternAt(off + i)
		}
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func readPattern(c net.Conn, from, to int) error {
	b := make([]byte, 50_000)
	for off := from; off < to; {
		n, err := c.Read(b[:min(len(b), to-off)])
		if err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		for i, v := range b[:n] {
			if v != patternAt(off+i) {
				return fmt.Errorf("byte %d is %#x, not %#x", off+i, v, patternAt(off+i))
			}
		}
		off += n
	}
	return nil
}
