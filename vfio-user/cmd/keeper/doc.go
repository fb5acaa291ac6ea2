// SPDX-License-Identifier: Apache-2.0

// Command keeper stands between QEMU and a vfio-user server, so that the device
// outlives the server:
//
//	go run ./vfio-user/cmd/keeper --socket-path=PATH -- SERVER-COMMAND...
//
// QEMU connects to PATH. The server is told its own socket in one of three ways:
// {socket} in an argument stands for a path to listen on; {fd} for the number of
// an inherited socket that listens already; and VFIO_USER_SOCKET in the
// environment is the same path as {socket}:
//
//	keeper --socket-path=/tmp/device -- edu --socket-path={socket}
//	keeper --socket-path=/tmp/device -- edu --fd={fd}
//
// KEEPER_GENERATION and TOEBOX_GENERATION in its environment count the starts,
// from 1 on. A server that ends, or leaves QEMU without an answer, is started
// again; SIGHUP replaces it in an orderly way, by whatever the command starts
// then. Standard output and standard error are passed on; what happens to the
// server is logged on standard error. The server runs in a process group of its
// own and dies with the keeper; with a wrapper as "go run" only the wrapper does,
// so build the server first.
//
// For a program that stands above: --socket-fd=N is an inherited socket that
// listens for QEMU, instead of --socket-path. What --inherit=N names, and can be
// given several times, each server gets as descriptors 4, 5 and so on, in that
// order; 3 is {fd}. --control-fd=N is one end of a socket pair, over which lines of
// JSON go: keeper.Order to the keeper, which has another command serve and answers
// when it does, or when it cannot and the one before serves again; keeper.Report
// from it, for that and for what happens to the server. When the other end is
// closed, the keeper ends.
//
// SIGTERM and SIGINT end the server and the keeper. A socket that a killed
// keeper left at PATH is replaced.
//
// Exit status: 0 told to end, 1 could not go on, 2 usage.
package main
