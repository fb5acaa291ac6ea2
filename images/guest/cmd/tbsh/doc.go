// SPDX-License-Identifier: Apache-2.0

// Command tbsh is the shell that a person gets in the guest; see package
// toebox/images/guest/shell.
package main
