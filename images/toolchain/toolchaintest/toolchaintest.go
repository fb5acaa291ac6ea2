// SPDX-License-Identifier: Apache-2.0

package toolchaintest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"toebox/images/toolchain"
)

// Config is the configuration the toebox command would use, without the network.
func Config(t testing.TB) toolchain.Config {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return toolchain.Config{
		CacheDir: filepath.Join(cache, "toebox"),
		QEMU:     os.Getenv("TOEBOX_QEMU"),
		Kernel:   os.Getenv("TOEBOX_KERNEL"),
		Modules:  os.Getenv("TOEBOX_MODULES"),
		Offline:  true,
	}
}

// QEMU returns a QEMU with vfio-user-pci.
func QEMU(t testing.TB) *toolchain.QEMU {
	t.Helper()
	q, err := toolchain.GetQEMU(t.Context(), Config(t))
	if err != nil {
		Missing(t, "qemu", "no QEMU (%v): run `make doctor`", err)
	}
	return q
}

// Kernel returns a kernel with its modules.
func Kernel(t testing.TB) *toolchain.Kernel {
	t.Helper()
	k, err := toolchain.GetKernel(t.Context(), Config(t))
	if err != nil {
		Missing(t, "qemu", "no kernel (%v): run `make doctor`", err)
	}
	return k
}

// Missing skips the test, or fails it when CI_REQUIRE names what.
func Missing(t testing.TB, what, format string, args ...any) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("CI_REQUIRE"), ","), what) {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
