// SPDX-License-Identifier: Apache-2.0

package nontemporal

import "unsafe"

// address is where b begins.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
