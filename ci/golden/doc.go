// SPDX-License-Identifier: Apache-2.0

// Package golden keeps what a guest sees of the adapter: lspci-vv.txt is the
// output of "lspci -vv" in the guest. Running the test with -update writes it
// anew.
//
// The guest gets the host's lspci with its libraries. Other versions word
// things differently, so the text is compared under the version that wrote the
// file only; the rules (no access denied, no unknown header, no overlap) hold
// under each.
package golden
