// SPDX-License-Identifier: Apache-2.0

// Command toebox-bench is the program that `toebox bench` runs in the guest: it does
// the tasks that come on its standard input (package ci/bench/task) and answers on
// its standard output. An argument is the number of huge pages to keep free for DMA. People have no use for it.
package main
