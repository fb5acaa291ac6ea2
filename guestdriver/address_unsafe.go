// SPDX-License-Identifier: Apache-2.0

package guestdriver

import "unsafe"

// addressOf returns where p begins, to be compared and never dereferenced.
func addressOf(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }
