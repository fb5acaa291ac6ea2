// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	vmlinuxName = "vmlinux"
	maxKernel   = 512 << 20 // bytes, of an image to read
)

// A Kernel is a Linux to boot and the tree its modules are in.
type Kernel struct {
	Origin  string    // where it comes from, in words
	Release string    // uname -r, if known
	Image   string    // what to give QEMU: vmlinux where it can be entered directly, else the bzImage
	Direct  bool      // Image is a vmlinux with a PVH entry
	Tree    string    // directory with the modules, "" for none
	From    []Package // the Debian packages it was made of, if it was
}

// findKernel returns the kernel of the caller's choice or Debian's.
func (c *Config) findKernel(ctx context.Context) (*Kernel, error) {
	if c.Kernel == "" {
		return c.debianKernel(ctx)
	}
	image, err := readImage(c.Kernel)
	if err != nil {
		return nil, fmt.Errorf("toolchain: TOEBOX_KERNEL: %w", err)
	}
	return &Kernel{Origin: c.Kernel, Image: c.Kernel, Direct: EntryPVH(image), Tree: c.Modules}, nil
}

// debianKernel returns the kernel unpacked in the cache, getting it when need be.
func (c *Config) debianKernel(ctx context.Context) (*Kernel, error) {
	dir := filepath.Join(c.CacheDir, "kernel")
	m, err := c.ensure(ctx, dir, "debian "+suiteBase+" "+architecture+" 1", func(ctx context.Context, tmp string) (Manifest, error) {
		a, done, err := c.apt(ctx)
		if err != nil {
			return Manifest{}, err
		}
		defer done()
		all, err := a.resolve(ctx, suiteBase, "linux-image-cloud-"+architecture)
		if err != nil {
			return Manifest{}, err
		}
		items := kernelItems(all)
		if len(items) == 0 {
			return Manifest{}, errors.New("toolchain: kernel: linux-image-cloud-" + architecture + " depends on no kernel")
		}
		if err := a.fetch(ctx, "kernel", filepath.Join(tmp, "root"), items); err != nil {
			return Manifest{}, err
		}
		step(c.Progress, "kernel: cutting vmlinux out of the bzImage")
		values, err := arrangeKernel(tmp)
		if err != nil {
			return Manifest{}, err
		}
		m := Manifest{Values: values}
		for _, it := range items {
			m.Packages = append(m.Packages, it.Package)
		}
		return m, nil
	})
	if err != nil {
		return nil, err
	}
	return &Kernel{
		Origin:  "Debian " + suiteBase + ", in " + dir,
		Release: m.Values["release"],
		Image:   filepath.Join(dir, m.Values["image"]),
		Direct:  m.Values["image"] == vmlinuxName,
		Tree:    filepath.Join(dir, m.Values["tree"]),
		From:    m.Packages,
	}, nil
}

// kernelItems picks the packages with the kernel and its modules out of a closure
// that also holds what an installed system wants around them.
func kernelItems(all []item) []item {
	var items []item
	for _, it := range all {
		for _, prefix := range []string{"linux-image-", "linux-modules-", "linux-binary-"} {
			rest, ok := strings.CutPrefix(it.Name, prefix)
			if ok && rest != "" && rest[0] >= '0' && rest[0] <= '9' {
				items = append(items, it)
			}
		}
	}
	return items
}

// arrangeKernel finds the kernel below dir/root, cuts out its vmlinux, and removes
// what a guest never sees.
func arrangeKernel(dir string) (map[string]string, error) {
	images, err := filepath.Glob(filepath.Join(globEscape(dir), "root/boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("toolchain: kernel: %d images in the package, want 1", len(images))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	values := map[string]string{"release": release}
	for _, tree := range []string{"usr/lib/modules", "lib/modules"} {
		rel := filepath.Join("root", tree, release)
		if _, err := os.Stat(filepath.Join(dir, rel)); err == nil {
			values["tree"] = rel
			break
		}
	}
	if values["tree"] == "" {
		return nil, fmt.Errorf("toolchain: kernel: no modules of %s in the package", release)
	}
	if err := os.RemoveAll(filepath.Join(dir, "root/usr/share")); err != nil {
		return nil, fmt.Errorf("toolchain: kernel: %w", err)
	}
	image, err := readImage(images[0])
	if err != nil {
		return nil, fmt.Errorf("toolchain: kernel: %w", err)
	}
	values["image"], err = filepath.Rel(dir, images[0])
	if err != nil {
		return nil, fmt.Errorf("toolchain: kernel: %w", err)
	}
	// A payload we cannot unpack, or one without the entry, still boots as it came.
	if elf, err := Vmlinux(image); err == nil && EntryPVH(elf) {
		if err := os.WriteFile(filepath.Join(dir, vmlinuxName), elf, 0o644); err != nil {
			return nil, fmt.Errorf("toolchain: kernel: %w", err)
		}
		values["image"] = vmlinuxName
	}
	return values, nil
}

func readImage(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxKernel {
		return nil, fmt.Errorf("%s is no kernel image", path)
	}
	return os.ReadFile(path)
}
