// SPDX-License-Identifier: Apache-2.0

// Package sysfstest makes a sysfs of plain files for tests. A folder of one
// lasts as long as its test.
package sysfstest
