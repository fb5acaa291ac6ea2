// SPDX-License-Identifier: Apache-2.0

// Command toebox-deadly is toebox-conformance with the functions of package deadly,
// for a test of the suite that runs it in a guest.
package main
