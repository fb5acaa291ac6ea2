// SPDX-License-Identifier: Apache-2.0

// Command toebox-bench is the program that `toebox bench` runs in the guest: it does
// the tasks that come on its standard input (package ci/bench/task) and answers on
// its standard output. Arguments are the number of huge pages to keep free for DMA, and
// the MiB of them that the driver may hold. People have no use for it.
package main
