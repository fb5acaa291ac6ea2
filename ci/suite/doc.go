// SPDX-License-Identifier: Apache-2.0

// Package suite is what is behind "toebox test": it runs the conformance kit on
// rungs of the bus ladder, writes results in the formats that people and
// machines read, and ends with the matrix of requirements and rungs and a line
// "N passed, N failed, N skipped".
//
// One call of [Run] runs two of its rungs at a time, each rung's functions one
// after the other; what it prints as they end is in no order, all that it
// writes at the end is. Calls do not share state.
package suite
