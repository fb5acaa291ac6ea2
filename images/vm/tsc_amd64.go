// SPDX-License-Identifier: Apache-2.0

package vm

// counter reads the processor's time stamp counter.
//
//go:noescape
func counter() uint64
