// SPDX-License-Identifier: Apache-2.0

// Package cheader writes vdev/abi/toebox.h, the programming interface in C: a
// macro for each exported constant of package abi, read from its source, under
// the name that SPEC.md gives it, and a struct for each layout of SPEC.md.
//
// "go generate ./vdev/abi" does it; a test of vdev/abi compares.
package cheader
