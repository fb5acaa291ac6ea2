// SPDX-License-Identifier: Apache-2.0

// Command tbinit is the guest's /init; see package toebox/images/guest. Called as sh
// it becomes the guest's shell.
package main
