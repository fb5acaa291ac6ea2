// SPDX-License-Identifier: Apache-2.0

// Command tbinit is the guest's /init; see package toebox/images/guest.
package main

import (
	"fmt"
	"os"

	"toebox/images/guest"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "tbinit: only of use as process 1 of a guest")
		os.Exit(2)
	}
	fmt.Fprintf(os.Stderr, "tbinit: %v\n", guest.Main())
	os.Exit(1)
}
