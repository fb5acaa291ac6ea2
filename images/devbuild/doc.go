// SPDX-License-Identifier: Apache-2.0

// Package devbuild builds the device process, with the tree's firmware or with a
// package from elsewhere (package vdev/device says what that has to export), and
// lists the directories that the program's source is in.
//
// A package from elsewhere takes no change of the tree: the file of the device
// process that names the firmware is replaced by go build's -overlay, and the
// package's module and the tree's are joined in a workspace (go.work) of their own,
// so that either finds the other whatever their go.mod files say. Programs are built
// as package initramfs builds them, and share the compiled packages of other modules in
// the cache of the go command.
//
// Functions are safe for concurrent use; temporary files are in a directory of each
// call.
//
// A person waits for the result: what costs time and serves nobody here is left out,
// debugging information of the tree's packages (stack traces do without) and the
// collection of garbage in compiler and linker included.
package devbuild
