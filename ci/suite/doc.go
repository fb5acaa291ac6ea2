// SPDX-License-Identifier: Apache-2.0

// Package suite is what is behind "toebox test": it runs the conformance kit on
// rungs of the bus ladder, writes results in the formats that people and
// machines read, and ends with the matrix of requirements and rungs and a line
// "N passed, N failed, N skipped".
//
// One call of [Run] runs its rungs one after the other; calls do not share
// state.
package suite
