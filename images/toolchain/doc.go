// SPDX-License-Identifier: Apache-2.0

// Package toolchain finds or gets the two foreign parts of the rig: a QEMU that
// knows vfio-user-pci, and a Linux kernel with its modules.
//
// QEMU is, in this order: the one the caller names, one on PATH whose
// `-device help` lists vfio-user-pci, or Debian's from trixie-backports unpacked
// with all its libraries into the cache and run through its own loader. The kernel
// is the one the caller names or Debian's cloud kernel, of which vmlinux is cut out
// of the bzImage: the decompressor alone costs a second without KVM.
//
// Debian packages come by apt with directories, sources and dpkg status of its own,
// as any user. apt checks the archive's signatures against the public keys shipped
// in this package; the mirror's address is the machine's own.
//
// # Cache
//
// Each part is one directory under Config.CacheDir, built beside its place and
// renamed into it, with a manifest.json that lists packages, files, sizes and
// SHA-256. [Ensure] checks size and time of every file each time and the hash of
// those whose time differs; anything missing or changed means the part is built
// again. A lock file serialises builders; readers of a good part take no lock.
//
// Functions are safe for concurrent use, also from several processes.
package toolchain
