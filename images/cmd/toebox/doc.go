// SPDX-License-Identifier: Apache-2.0

// Command toebox is the rig's one command; the Makefile's targets are aliases of its
// verbs. Each flag has an environment variable, TOEBOX_ and its name.
//
// Exit codes: 0 passed, 1 a test failed, 2 usage, 3 guest or firmware crashed, 4 all
// skipped, 124 timed out, 125 this machine could not run it; of exec, the command's
// own, 126 and 127 as a shell's. All are below 128, so that git bisect run takes 125
// as skip and the others as good or bad.
package main
