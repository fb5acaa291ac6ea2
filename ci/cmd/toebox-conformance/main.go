// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"

	"toebox/ci/conformance"
	"toebox/ci/guestkit"
)

func main() {
	os.Exit(guestkit.Main(conformance.Tests(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
