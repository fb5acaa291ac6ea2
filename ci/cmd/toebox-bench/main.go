// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"toebox/ci/bench/agent"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	memory := 0
	if len(os.Args) == 3 {
		// The pages are there in one piece only while the guest is young.
		if err := os.WriteFile("/proc/sys/vm/nr_hugepages", []byte(os.Args[1]), 0); err != nil {
			fmt.Fprintf(os.Stderr, "toebox-bench: %v\n", err)
		}
		mib, err := strconv.Atoi(os.Args[2])
		if err != nil {
			fmt.Fprintf(os.Stderr, "toebox-bench: %v\n", err)
			os.Exit(2)
		}
		memory = mib << 20
	}
	a := agent.New(agent.Config{Memory: memory, Bus: agent.OpenVFIO, Link: agent.SetLink, Threads: runtime.GOMAXPROCS})
	if err := errors.Join(a.Serve(ctx, os.Stdin, os.Stdout), a.Close()); err != nil {
		fmt.Fprintf(os.Stderr, "toebox-bench: %v\n", err)
		os.Exit(1)
	}
}
