// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"toebox/images/proc"
)

const (
	qemuName     = "qemu-system-x86_64"
	qemuDevice   = "vfio-user-pci"
	qemuPatience = 20 * time.Second
	qbootROM     = "qboot.rom"
)

// A QEMU is an emulator ready to be started.
type QEMU struct {
	Origin  string    // where it comes from, in words
	Version string    // as it says itself
	Argv    []string  // program and leading arguments
	Env     []string  // to be added to the environment
	QBoot   bool      // qboot.rom is among its firmware
	From    []Package // the Debian packages it was made of, if it was
}

// Command returns the command that runs q with args; the caller sets the rest.
func (q *QEMU) Command(args ...string) *exec.Cmd {
	argv := slices.Concat(q.Argv, args)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(cleanEnv(), q.Env...)
	return cmd
}

// cleanEnv is the environment without what redirects a dynamic loader.
func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, "LD_") || strings.HasPrefix(s, "QEMU_MODULE_DIR=")
	})
}

// Probe runs q and fills in what it says of itself. It fails unless q has the
// vfio-user-pci device.
func (q *QEMU) Probe(ctx context.Context) error {
	out, err := q.output(ctx, "-device", "help")
	if err != nil {
		return err
	}
	if !bytes.Contains(out, []byte(`"`+qemuDevice+`"`)) {
		return errNoDevice
	}
	if out, err = q.output(ctx, "--version"); err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(out), "\n")
	q.Version = strings.TrimPrefix(strings.TrimSpace(first), "QEMU emulator version ")
	if out, err = q.output(ctx, "-L", "help"); err != nil {
		return err
	}
	for dir := range strings.Lines(string(out)) {
		if _, err := os.Stat(filepath.Join(strings.TrimSpace(dir), qbootROM)); err == nil {
			q.QBoot = true
		}
	}
	return nil
}

var errNoDevice = errors.New("has no " + qemuDevice + " device (QEMU >= 10.1 is needed)")

func (q *QEMU) output(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, qemuPatience, fmt.Errorf("no answer to %s after %v", args[0], qemuPatience))
	defer cancel()
	cmd := q.Command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := proc.Run(ctx, cmd); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		first, _, _ := strings.Cut(strings.TrimSpace(errs.String()), "\n")
		if first == "" {
			first = err.Error()
		}
		return nil, errors.New(clip(first))
	}
	return out.Bytes(), nil
}

// findQEMU returns the QEMU of the caller's choice, one on PATH, or Debian's.
func (c *Config) findQEMU(ctx context.Context) (*QEMU, error) {
	if c.QEMU != "" {
		path, err := exec.LookPath(c.QEMU)
		if err != nil {
			return nil, fmt.Errorf("toolchain: TOEBOX_QEMU: %w", err)
		}
		q := &QEMU{Origin: path, Argv: []string{path}}
		if err := q.Probe(ctx); err != nil {
			return nil, fmt.Errorf("toolchain: %s: %w: unset TOEBOX_QEMU to get Debian's", path, err)
		}
		return q, nil
	}
	if path, err := exec.LookPath(qemuName); err == nil {
		q := &QEMU{Origin: path, Argv: []string{path}}
		err := q.Probe(ctx)
		if err == nil {
			return q, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		step(c.Progress, "qemu: %s %v: using Debian's", path, err)
	}
	return c.debianQEMU(ctx)
}

// debianQEMU returns the QEMU unpacked in the cache, getting it when need be.
func (c *Config) debianQEMU(ctx context.Context) (*QEMU, error) {
	dir := filepath.Join(c.CacheDir, "qemu")
	m, err := c.ensure(ctx, dir, "debian "+suiteBackports+" "+architecture+" 1", func(ctx context.Context, tmp string) (Manifest, error) {
		a, done, err := c.apt(ctx)
		if err != nil {
			return Manifest{}, err
		}
		defer done()
		items, err := a.resolve(ctx, suiteBackports, "qemu-system-x86")
		if err != nil {
			return Manifest{}, err
		}
		items = slices.DeleteFunc(items, func(it item) bool { return unneeded(it.Name) })
		if err := a.fetch(ctx, "qemu", filepath.Join(tmp, "root"), items); err != nil {
			return Manifest{}, err
		}
		if err := writeWrapper(tmp); err != nil {
			return Manifest{}, fmt.Errorf("toolchain: qemu: %w", err)
		}
		q := unpackedQEMU(tmp)
		if err := q.Probe(ctx); err != nil {
			return Manifest{}, fmt.Errorf("toolchain: the QEMU just unpacked: %w", err)
		}
		m := Manifest{Values: map[string]string{"version": q.Version}}
		for _, it := range items {
			m.Packages = append(m.Packages, it.Package)
		}
		return m, nil
	})
	if err != nil {
		return nil, err
	}
	q := unpackedQEMU(dir)
	q.Version, q.From = m.Values["version"], m.Packages
	_, err = os.Stat(filepath.Join(dir, "root/usr/share/qemu", qbootROM))
	q.QBoot = err == nil
	return q, nil
}

// unneeded names packages that QEMU's depend on for installation, not for running.
func unneeded(name string) bool {
	switch name {
	case "adduser", "passwd", "base-passwd", "debconf", "login.defs", "ipxe-qemu",
		"libpam-modules", "libpam-modules-bin", "libasound2-data":
		return true
	}
	return false
}

// unpackedQEMU describes the QEMU whose packages were unpacked below dir/root.
func unpackedQEMU(dir string) *QEMU {
	root := filepath.Join(dir, "root")
	lib := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	return &QEMU{
		Origin: "Debian " + suiteBackports + ", in " + dir,
		Argv: []string{
			filepath.Join(root, "usr/lib64/ld-linux-x86-64.so.2"),
			"--inhibit-cache", // the machine's own libraries do not fit this loader
			"--library-path", lib,
			"--argv0", qemuName,
			filepath.Join(root, "usr/bin", qemuName),
			"-L", filepath.Join(root, "usr/share/qemu"),
			"-L", filepath.Join(root, "usr/share/seabios"),
		},
		Env: []string{"QEMU_MODULE_DIR=" + filepath.Join(lib, "qemu")},
	}
}

// writeWrapper puts a script beside the tree that starts it from any place.
func writeWrapper(dir string) error {
	const script = `#!/bin/sh
# Starts the QEMU unpacked beside this script, with its own libraries.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 125
lib=$here/root/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$lib/qemu"
exec "$here/root/usr/lib64/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$lib" --argv0 ` + qemuName + ` \
	"$here/root/usr/bin/` + qemuName + `" -L "$here/root/usr/share/qemu" -L "$here/root/usr/share/seabios" "$@"
`
	return os.WriteFile(filepath.Join(dir, qemuName), []byte(script), 0o755)
}
