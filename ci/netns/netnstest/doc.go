// SPDX-License-Identifier: Apache-2.0

// Package netnstest runs tests that need a network of the kernel's (package netns):
// here, or in a user namespace, or not at all, with the cure. CI_REQUIRE=tap makes the
// last a failure.
package netnstest
