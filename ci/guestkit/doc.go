// SPDX-License-Identifier: Apache-2.0

// Package guestkit is the program that runs functions of the kit inside a guest
// (ci/cmd/toebox-conformance says how), whichever functions those are.
//
// A call of [Main] owns the adapter until it returns. There is one in a process.
package guestkit
