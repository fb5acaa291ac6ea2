// SPDX-License-Identifier: Apache-2.0

//go:build !race

package firmware_test

const raceEnabled = false
