// SPDX-License-Identifier: Apache-2.0

package firmware

import "unsafe"

// wordAligned reports whether the start of p can be reached by [abi.LoadWord].
func wordAligned(p []byte) bool {
	return len(p) >= 4 && uintptr(unsafe.Pointer(unsafe.SliceData(p)))&3 == 0
}
