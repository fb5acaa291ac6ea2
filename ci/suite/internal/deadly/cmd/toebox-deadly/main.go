// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"

	"toebox/ci/guestkit"
	"toebox/ci/suite/internal/deadly"
)

func main() { os.Exit(guestkit.Main(deadly.Tests(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
