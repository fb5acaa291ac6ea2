// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/u-root/gobusybox/src/pkg/golang"
	"github.com/u-root/mkuimage/uimage"
)

// The line editor of u-root's shell that asks the terminal nothing: the other one
// waits for answers that a script at the other end never gives.
const shellTag = "goshliner"

func main() {
	module := flag.String("module", "", "directory of u-root's module")
	work := flag.String("work", "", "directory for intermediate files")
	out := flag.String("o", "", "archive to write")
	flag.Parse()
	if *module == "" || *work == "" || *out == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := build(*module, *work, *out, flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "tbbase: %v\n", err)
		os.Exit(1)
	}
}

func build(module, work, out string, commands []string) error {
	opts, err := uimage.OptionsFor(
		uimage.WithEnv(golang.WithGOOS("linux"), golang.WithGOARCH("amd64"), golang.DisableCGO(), golang.WithBuildTag(shellTag), golang.WithWorkingDir(module)),
		uimage.WithBusyboxCommands(commands...),
		uimage.WithSkipLDD(),
		uimage.WithTempDir(work),
		uimage.WithCPIOOutput(out),
	)
	if err != nil {
		return err
	}
	return opts.Create(nil)
}
