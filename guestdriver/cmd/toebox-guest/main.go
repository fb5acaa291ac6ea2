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

// defaultSocket is where the process that serves an adapter listens for the other
// commands.
func defaultSocket(adapter int) string {
	if adapter == 0 {
		return "/run/toebox.sock"
	}
	return fmt.Sprintf("/run/toebox-%d.sock", adapter)
}

// adapterVariable in the environment is the default of -adapter.
const adapterVariable = "TOEBOX_ADAPTER"

const usage = `usage: toebox-guest [-adapter N] [-socket PATH] COMMAND

N counts the adapters of this machine in the order of ls, from 0; the default is
TOEBOX_ADAPTER in the environment, or 0.

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

// commands are those about an adapter.
func commands(adapter int) map[string]command {
	return map[string]command{
		"serve": func(ctx context.Context, socket string, args []string, io stdio) error {
			return serve(ctx, adapter, socket, args, io)
		},
		"ls": list, "attr": attrCommand, "stats": stats,
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
	adapter := fs.Int("adapter", 0, "number of the adapter")
	socket := fs.String("socket", "", "local socket of the serving process")
	if s, ok := os.LookupEnv(adapterVariable); ok {
		if err := fs.Set("adapter", s); err != nil {
			fmt.Fprintf(io.err, "toebox-guest: %s: %v\n", adapterVariable, err)
			return 2
		}
	}
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
	cmd, ok := commands(*adapter)[fs.Arg(0)]
	if !ok || *adapter < 0 {
		fs.Usage()
		return 2
	}
	if *socket == "" {
		*socket = defaultSocket(*adapter)
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
