// SPDX-License-Identifier: Apache-2.0

// Package toolchaintest gives tests the QEMU and kernel that are already there. It
// downloads nothing: a test without them is skipped, naming the cure, unless
// CI_REQUIRE lists "qemu".
package toolchaintest
