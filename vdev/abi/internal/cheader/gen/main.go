// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"toebox/vdev/abi/internal/cheader"
)

func main() {
	text, err := cheader.Generate(".")
	if err == nil {
		err = os.WriteFile(cheader.Name, text, 0o644)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "gen: %v\n", err)
		os.Exit(1)
	}
}
