// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"toebox/ci/bench/agent"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) == 2 {
		// The pages are there in one piece only while the guest is young.
		if err := os.WriteFile("/proc/sys/vm/nr_hugepages", []byte(os.Args[1]), 0); err != nil {
			fmt.Fprintf(os.Stderr, "toebox-bench: %v\n", err)
		}
	}
	a := agent.New(agent.Config{Bus: agent.OpenVFIO, Link: agent.SetLink})
	if err := errors.Join(a.Serve(ctx, os.Stdin, os.Stdout), a.Close()); err != nil {
		fmt.Fprintf(os.Stderr, "toebox-bench: %v\n", err)
		os.Exit(1)
	}
}
