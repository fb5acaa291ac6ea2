// SPDX-License-Identifier: Apache-2.0

// Command tbbase makes an archive with u-root's commands as one busybox binary:
//
//	tbbase -module DIR -work DIR -o FILE PACKAGE...
//
// It builds within u-root's own module, whose go.sum names what its commands need: the
// module of toebox then stays free of them. It is a program of its own because the
// library that builds knows no contexts: a process can be ended with all it started.
package main
