// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"toebox/images/guest"
)

const shell = "/bbin/gosh"

func main() {
	if filepath.Base(os.Args[0]) == "sh" {
		// u-root's busybox knows its shell by another name.
		err := syscall.Exec(shell, append([]string{shell}, os.Args[1:]...), os.Environ())
		fmt.Fprintf(os.Stderr, "sh: %s: %v\n", shell, err)
		os.Exit(127)
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "tbinit: only of use as process 1 of a guest")
		os.Exit(2)
	}
	fmt.Fprintf(os.Stderr, "tbinit: %v\n", guest.Main())
	os.Exit(1)
}
