// SPDX-License-Identifier: Apache-2.0

// Package sample attaches vfio-user/sample to QEMU under qtest: the one device
// here that has memory which the guest maps, an interrupt pin, and no
// capabilities at all.
package sample
