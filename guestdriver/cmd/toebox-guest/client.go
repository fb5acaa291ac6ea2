// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// stdio is where a command reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// fetch gets a URL over the adapter and copies the body to the output.
func fetch(ctx context.Context, socket string, args []string, io_ stdio) error {
	fs := newFlags("fetch", "URL", io_)
	timeout := fs.Duration("timeout", time.Minute, "limit on the whole transfer")
	connect := fs.Duration("connect-timeout", 15*time.Second, "limit on connecting")
	output := fs.String("o", "", "write the body to this `file`")
	if err := parse(fs, args, 1); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fs.Arg(0), nil)
	if err != nil {
		return usageError{err}
	}
	cl := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			c, _, err := ask(ctx, socket, request{Op: "dial", Address: address, Timeout: int64(*connect)})
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		DisableKeepAlives: true,
	}}
	res, err := cl.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	w := io_.out
	if *output != "" {
		f, err := os.Create(*output)
		if err != nil {
			return err
		}
		defer f.Close()
		w = f
	}
	if _, err := io.Copy(w, res.Body); err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s: %s", fs.Arg(0), res.Status)
	}
	return nil
}

// dial joins a connection to standard input and output.
func dial(ctx context.Context, socket string, args []string, io_ stdio) error {
	fs := newFlags("dial", "HOST:PORT", io_)
	timeout := fs.Duration("connect-timeout", 15*time.Second, "limit on connecting")
	if err := parse(fs, args, 1); err != nil {
		return err
	}
	c, r, err := ask(ctx, socket, request{Op: "dial", Address: fs.Arg(0), Timeout: int64(*timeout)})
	if err != nil {
		return err
	}
	fmt.Fprintf(io_.err, "connected %s -> %s\n", r.Local, r.Peer)
	return join(ctx, c, io_)
}

// listen accepts one connection and joins it to standard input and output.
func listen(ctx context.Context, socket string, args []string, io_ stdio) error {
	fs := newFlags("listen", "[ADDRESS]:PORT", io_)
	timeout := fs.Duration("timeout", 0, "give up when nobody has come by then (0: wait)")
	if err := parse(fs, args, 1); err != nil {
		return err
	}
	address := fs.Arg(0)
	if !strings.Contains(address, ":") {
		address = ":" + address
	}
	c, r, err := ask(ctx, socket, request{Op: "listen", Address: address, Timeout: int64(*timeout)})
	if err != nil {
		return err
	}
	fmt.Fprintf(io_.err, "listening on %s\n", r.Local)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	r, err = readReply(c)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return err
	}
	fmt.Fprintf(io_.err, "connection from %s\n", r.Peer)
	return join(ctx, c, io_)
}

// join copies both ways until both directions have ended, or, with a terminal
// as input, until the peer has ended its stream.
func join(ctx context.Context, c *net.UnixConn, io_ stdio) error {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	sent := make(chan struct{})
	go func() { // a read of a terminal ends with the process only
		defer close(sent)
		io.Copy(c, io_.in)
		c.CloseWrite()
	}()
	_, err := io.Copy(io_.out, c)
	if err == nil && !isTerminal(io_.in) {
		select {
		case <-sent:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// show prints the lines that an operation answers with.
func show(ctx context.Context, socket string, q request, io_ stdio) error {
	c, r, err := ask(ctx, socket, q)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, l := range r.Lines {
		fmt.Fprintln(io_.out, l)
	}
	return nil
}

func stats(ctx context.Context, socket string, args []string, io_ stdio) error {
	fs := newFlags("stats", "", io_)
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	return show(ctx, socket, request{Op: "stats"}, io_)
}

func attrCommand(ctx context.Context, socket string, args []string, io_ stdio) error {
	fs := newFlags("attr", "[NAME[=VALUE]]", io_)
	conn := fs.Uint64("conn", 0, "connection `id` (0: the adapter)")
	if err := parse(fs, args, -1); err != nil {
		return err
	}
	if fs.NArg() > 1 {
		return usageError{errors.New("attr takes one attribute")}
	}
	name, value, set := strings.Cut(fs.Arg(0), "=")
	if set && (name == "" || value == "") {
		return usageError{errors.New("attr sets by NAME=VALUE")}
	}
	return show(ctx, socket, request{Op: "attr", Conn: *conn, Attr: name, Value: value}, io_)
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func newFlags(name, args string, io_ stdio) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io_.err)
	fs.Usage = func() {
		fmt.Fprintf(io_.err, "usage: toebox-guest %s [flags] %s\n", name, args)
		fs.PrintDefaults()
	}
	return fs
}

// parse parses flags and checks the number of arguments, unless n is -1.
func parse(fs *flag.FlagSet, args []string, n int) error {
	if err := fs.Parse(args); err != nil {
		return usageError{err}
	}
	if n >= 0 && fs.NArg() != n {
		fs.Usage()
		return usageError{fmt.Errorf("%s takes %d argument(s)", fs.Name(), n)}
	}
	return nil
}
