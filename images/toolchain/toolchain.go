// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Config says what the caller has and where things go.
type Config struct {
	CacheDir string   // e.g. $XDG_CACHE_HOME/toebox
	QEMU     string   // program to use instead of searching; TOEBOX_QEMU
	Kernel   string   // bzImage or vmlinux to use instead of Debian's; TOEBOX_KERNEL
	Modules  string   // directory with modules.dep that goes with Kernel; TOEBOX_MODULES
	Mirror   string   // Debian mirror to use instead of the machine's; TOEBOX_DEBIAN_MIRROR
	Root     fs.FS    // the machine's file system, where apt's sources are; nil is /
	Offline  bool     // take what is there or fail with ErrMissing
	Progress Progress // may be nil
}

// ErrMissing says that a part is not in the cache and Config.Offline is set.
var ErrMissing = errors.New("toolchain: not in the cache (`toebox get` fetches it)")

// ensure is Ensure within the limits of c.
func (c *Config) ensure(ctx context.Context, dir, key string, build func(ctx context.Context, tmp string) (Manifest, error)) (Manifest, error) {
	if c.Offline {
		m, err := Verify(dir, key)
		if err != nil {
			return m, fmt.Errorf("%w: %w", ErrMissing, err)
		}
		return m, nil
	}
	return Ensure(ctx, dir, key, c.Progress, build)
}

// Tools is what Get found.
type Tools struct {
	QEMU   *QEMU
	Kernel *Kernel
}

// Get finds or gets both parts. The second time it touches no network.
func Get(ctx context.Context, c Config) (*Tools, error) {
	defer c.forgetLists(ctx)
	q, err := GetQEMU(ctx, c)
	if err != nil {
		return nil, err
	}
	k, err := GetKernel(ctx, c)
	if err != nil {
		return nil, err
	}
	return &Tools{QEMU: q, Kernel: k}, nil
}

// forgetLists removes apt's lists, a hundred megabytes that are of no use once both
// parts are there.
func (c *Config) forgetLists(ctx context.Context) {
	dir := filepath.Join(c.CacheDir, "apt")
	if _, err := os.Stat(dir); err != nil || c.Offline {
		return
	}
	unlock, err := Lock(ctx, dir+".lock", nil)
	if err != nil {
		return
	}
	defer unlock()
	os.RemoveAll(dir) //nolint:errcheck // only wasted space if it stays
}

// GetQEMU finds or gets a QEMU.
func GetQEMU(ctx context.Context, c Config) (*QEMU, error) {
	return c.findQEMU(ctx)
}

// GetKernel finds or gets a kernel.
func GetKernel(ctx context.Context, c Config) (*Kernel, error) {
	return c.findKernel(ctx)
}

// apt opens apt in the cache. Its lists stay for the next part; done lets go of it.
func (c *Config) apt(ctx context.Context) (a *apt, done func(), err error) {
	mirrors := []string{c.Mirror}
	if c.Mirror == "" {
		root := c.Root
		if root == nil {
			root = os.DirFS("/")
		}
		mirrors = Mirrors(root)
	}
	dir := filepath.Join(c.CacheDir, "apt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	unlock, err := Lock(ctx, dir+".lock", c.Progress)
	if err != nil {
		return nil, nil, err
	}
	// What a killed run left half-downloaded.
	if stale, err := filepath.Glob(filepath.Join(globEscape(dir), "debs-*")); err == nil {
		for _, d := range stale {
			os.RemoveAll(d) //nolint:errcheck // only wasted space if it stays
		}
	}
	if a, err = openApt(ctx, dir, mirrors, c.Progress); err != nil {
		unlock()
		return nil, nil, err
	}
	return a, unlock, nil
}
