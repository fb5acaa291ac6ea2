// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"toebox/images/guest/shell"
)

func main() {
	status, err := shell.Run(os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "tbsh: %v\n", err)
	}
	os.Exit(status)
}
