// SPDX-License-Identifier: Apache-2.0

package nontemporal

// line is what stores are gathered to: a line of the cache. Less than whole ones
// are stored ordinarily.
const line = 64

// least is from how many bytes on it is worth the while.
const least = 4 * line

// Copy copies bytes from src to dst as copy does, and returns how many. The two do
// not overlap.
func Copy(dst, src []byte) int {
	n := min(len(dst), len(src))
	if n < least {
		return copy(dst, src)
	}
	dst, src = dst[:n], src[:n]
	head := int(-address(dst) & (line - 1))
	whole := (n - head) &^ (line - 1)
	copy(dst[:head], src)
	copyLines(dst[head:head+whole], src[head:head+whole])
	copy(dst[head+whole:], src[head+whole:])
	return n
}
