// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"

	"toebox/guestdriver"
	"toebox/guestdriver/uio"
	"toebox/guestdriver/vfio"
	"toebox/vdev/abi"
)

func main() {
	fmt.Println("toebox-driver 1 reset connect listen accept send recv close get set cancel stats")
	d := &driver{ctx: context.Background()}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		words := strings.Fields(in.Text())
		answer, err := d.do(words[0], append(words[1:], "", "", "")) // an operation finds its words
		if err != nil {
			var status abi.Status
			errors.As(err, &status)
			answer = fmt.Sprintf("err %d %v", status, err)
		} else {
			answer = strings.TrimSpace("ok " + answer)
		}
		fmt.Println(strings.ReplaceAll(answer, "\n", " "))
	}
}

// driver is an adapter at work. Connections and listeners go by their places in
// the lists, from 1 on; 0 is the adapter.
type driver struct {
	ctx       context.Context
	adapter   *guestdriver.Adapter
	conns     []*guestdriver.Conn
	listeners []net.Listener
}

func (d *driver) do(operation string, w []string) (string, error) {
	switch operation {
	case "reset":
		return "", d.reset()
	case "connect":
		c, err := d.adapter.DialContext(d.ctx, "tcp", w[0])
		return d.enter(c, err)
	case "cancel":
		return d.cancel(w[0])
	case "listen":
		l, err := d.adapter.Listen("tcp", ":"+w[0])
		d.listeners = append(d.listeners, l)
		return strconv.Itoa(len(d.listeners)), err
	case "accept":
		l, err := pick(d.listeners, w[0])
		if err != nil {
			return "", err
		}
		c, err := l.Accept()
		return d.enter(c, err)
	case "stats":
		return d.stats(w[0])
	}
	return d.withConn(operation, w)
}

// withConn does what is done with a connection.
func (d *driver) withConn(operation string, w []string) (string, error) {
	var c *guestdriver.Conn
	id := uint64(0)
	if w[0] != "0" {
		var err error
		if c, err = pick(d.conns, w[0]); err != nil {
			return "", err
		}
		id = c.ID()
	}
	switch operation {
	case "send":
		return w[1], send(c, w[1], w[2])
	case "recv":
		return receive(c, w[1])
	case "close":
		return "", end(c, w[1])
	case "get":
		attr, err := attribute(w[1])
		if err != nil {
			return "", err
		}
		v, err := d.adapter.Attribute(d.ctx, id, attr)
		return hex.EncodeToString(v), err
	case "set":
		attr, err := attribute(w[1])
		if err != nil {
			return "", err
		}
		v, err := hex.DecodeString(w[2])
		if err != nil {
			return "", err
		}
		return "", d.adapter.SetAttribute(d.ctx, id, attr, v)
	}
	return "", fmt.Errorf("no operation %q", operation)
}

// reset takes the adapter, and so resets it.
func (d *driver) reset() error {
	if d.adapter != nil {
		if err := d.adapter.Close(); err != nil {
			return err
		}
	}
	*d = driver{ctx: d.ctx}
	var bus guestdriver.Bus
	var err error
	if bdf := os.Getenv("TOEBOX_BDF"); os.Getenv("TOEBOX_KERNEL_DRIVER") == "uio" {
		bus, err = uio.Open(bdf, uio.Options{})
	} else {
		bus, err = vfio.Open(bdf)
	}
	if err != nil {
		return err
	}
	d.adapter, err = guestdriver.Open(d.ctx, bus, guestdriver.Options{Memory: 4 << 20})
	if err != nil {
		return errors.Join(err, bus.Close())
	}
	return nil
}

func (d *driver) enter(c net.Conn, err error) (string, error) {
	if err != nil {
		return "", err
	}
	d.conns = append(d.conns, c.(*guestdriver.Conn))
	return strconv.Itoa(len(d.conns)), nil
}

func (d *driver) cancel(address string) (string, error) {
	ctx, cancel := context.WithCancel(d.ctx)
	done := make(chan error, 1)
	before := d.adapter.Stats().Requests
	go func() {
		_, err := d.adapter.DialContext(ctx, "tcp", address)
		done <- err
	}()
	for len(done) == 0 && d.adapter.Stats().Requests == before {
		runtime.Gosched()
	}
	cancel()
	switch err := <-done; {
	case err == nil:
		return "0", nil
	case errors.Is(err, context.Canceled):
		return strconv.Itoa(int(abi.StatusCancelled)), nil
	default:
		return "", err
	}
}

func (d *driver) stats(index string) (string, error) {
	i, err := strconv.Atoi(index)
	if err != nil {
		return "", err
	}
	all, err := d.adapter.Counters(d.ctx)
	if err != nil {
		return "", err
	}
	if i < 0 || i >= len(all) {
		return "", fmt.Errorf("no counter %d", i)
	}
	return strconv.FormatUint(all[i], 10), nil
}

func send(c net.Conn, n, seed string) error {
	count, err1 := strconv.Atoi(n)
	stream, err2 := strconv.ParseUint(seed, 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	p := make([]byte, 0, count+8)
	for i := uint64(0); len(p) < count; i++ {
		z := stream + i*0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		for k := range 8 {
			p = append(p, byte(z>>(8*k)))
		}
	}
	_, err := c.Write(p[:count])
	return err
}

func receive(c net.Conn, n string) (string, error) {
	count, err := strconv.ParseInt(n, 10, 64)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	got, err := io.CopyN(sum, c, count)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return fmt.Sprintf("%d %x", got, sum.Sum(nil)), nil
}

func end(c *guestdriver.Conn, mode string) error {
	switch mode {
	case "graceful":
		return c.Close()
	case "half":
		return c.CloseWrite()
	case "abort":
		return errors.Join(c.SetLinger(0), c.Close())
	}
	return fmt.Errorf("no mode %q", mode)
}

func attribute(word string) (abi.Attribute, error) {
	n, err := strconv.ParseUint(word, 10, 15)
	return abi.Attribute(n), err
}

// pick returns what a word names in a list, from 1 on.
func pick[E any](list []E, word string) (e E, err error) {
	i, err := strconv.Atoi(word)
	if err != nil {
		return e, err
	}
	if i < 1 || i > len(list) {
		return e, fmt.Errorf("there is no %s", word)
	}
	return list[i-1], nil
}
