// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

package nontemporal

// copyLines copies whole lines. dst begins with one and src is as long.
func copyLines(dst, src []byte) { stream(&dst[0], &src[0], uintptr(len(dst))) }

// stream copies n bytes, a multiple of 64 above 0, to dst, a multiple of 64.
//
//go:noescape
func stream(dst, src *byte, n uintptr)
