// SPDX-License-Identifier: Apache-2.0

// Package spans deals out pieces of a range: first fit, by whole pages. A
// [Set] is not safe for concurrent use.
package spans
