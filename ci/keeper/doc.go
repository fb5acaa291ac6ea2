// SPDX-License-Identifier: Apache-2.0

// Package keeper kills the server of QEMU's teaching device a hundred times under
// a machine that uses it. QEMU, under qtest, is attached to a keeper; the test
// does DMA through the device and sends SIGKILL to the server at random moments.
// QEMU must not notice, every transfer that was acknowledged must be in memory,
// and each new server must get on with the work.
//
// TOEBOX_SEED=N repeats the moments of a run.
package keeper
