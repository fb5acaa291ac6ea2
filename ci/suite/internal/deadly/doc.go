// SPDX-License-Identifier: Apache-2.0

// Package deadly has functions that no guest, or no test, survives, to see what a
// run makes of that. They are in no other list than its own.
package deadly
