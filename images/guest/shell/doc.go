// SPDX-License-Identifier: Apache-2.0

// Package shell is the guest's interactive shell: the interpreter of u-root's gosh
// with a line editor and a person's Ctrl-C. That key ends what runs and never the
// shell, whose end would end the machine; gosh dies of it. Scripts are gosh's.
//
// A terminal's foreground processes all get its SIGINT, the shell's children
// included. The shell waits for them as they choose to end, and then drops the rest
// of the line.
//
// Run uses the process's signals and directory: one call at a time.
package shell
