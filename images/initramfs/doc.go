// SPDX-License-Identifier: Apache-2.0

// Package initramfs makes the guest's root file system: u-root's commands as one
// busybox binary, built once and kept in the cache, followed by our own programs and
// the kernel modules. Linux unpacks archives that follow one another, the later ones
// over the earlier (Documentation/driver-api/early-userspace/buffer-format.rst).
//
// Nothing is compressed, modules included: without KVM the guest unpacks slower than
// it reads. The result is stored under the hash of its contents.
package initramfs
