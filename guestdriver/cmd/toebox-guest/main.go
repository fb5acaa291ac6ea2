// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// defaultSocket is where the serving process listens for the other commands.
const defaultSocket = "/run/toebox.sock"

const usage = `usage: toebox-guest [-socket PATH] COMMAND

  serve                    run the driver, the HTTP server and the local socket
  ls                       list the adapters of this machine
  attr [NAME[=VALUE]]      show or set attributes (-conn ID: of a connection)
  stats                    show the counters of adapter and driver
  dial HOST:PORT           connect over the adapter; standard input and output
  listen [ADDRESS]:PORT    accept one connection over the adapter
  fetch [-o FILE] URL      get a URL over the adapter

Status: 0 done, 1 failed, 2 usage, 124 timed out.
`

type command func(ctx context.Context, socket string, args []string, io stdio) error

func commands() map[string]command {
	return map[string]command{
		"serve": serve, "ls": list, "attr": attrCommand, "stats": stats,
		"dial": dial, "listen": listen, "fetch": fetch,
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// run runs one command and returns its exit status.
func run(ctx context.Context, args []string, io stdio) int {
	fs := flag.NewFlagSet("toebox-guest", flag.ContinueOnError)
	fs.SetOutput(io.err)
	fs.Usage = func() { fmt.Fprint(io.err, usage) }
	socket := fs.String("socket", defaultSocket, "local socket of the serving process")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if fs.Arg(0) == "help" {
		fmt.Fprint(io.out, usage)
		return 0
	}
	cmd, ok := commands()[fs.Arg(0)]
	if !ok {
		fs.Usage()
		return 2
	}
	err := cmd(ctx, *socket, fs.Args()[1:], io)
	var bad usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &bad):
		fmt.Fprintf(io.err, "toebox-guest %s: %v\n", fs.Arg(0), err)
		return 2
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		fmt.Fprintf(io.err, "toebox-guest %s: timed out: %v\n", fs.Arg(0), err)
		return 124
	}
	fmt.Fprintf(io.err, "toebox-guest %s: %v\n", fs.Arg(0), err)
	return 1
}
