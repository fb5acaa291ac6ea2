// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// script puts an executable shell script on a PATH that has nothing else of ours.
func script(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

const goodQEMU = `case "$*" in
"-device help") echo 'name "vfio-user-pci", bus PCI' ;;
--version) echo 'QEMU emulator version 11.1.3 (x)'; echo Copyright ;;
"-L help") echo "$(dirname "$0")" ;;
*) exit 9 ;;
esac
`

func TestFindQEMU(t *testing.T) {
	dir := t.TempDir()
	good := script(t, dir, "good", goodQEMU)
	old := script(t, dir, "old", "echo 'name \"virtio-net-pci\"'\n")
	broken := script(t, dir, "broken", "echo 'cannot open shared object file' >&2; exit 1\n")
	if err := os.WriteFile(filepath.Join(dir, "qboot.rom"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	q, err := GetQEMU(t.Context(), Config{QEMU: good})
	if err != nil || q.Version != "11.1.3 (x)" || !q.QBoot {
		t.Errorf("good: %+v, %v", q, err)
	}
	for path, want := range map[string]string{
		old: "has no vfio-user-pci device (QEMU >= 10.1 is needed): unset TOEBOX_QEMU", broken: "shared object", filepath.Join(dir, "none"): "TOEBOX_QEMU",
	} {
		if _, err := GetQEMU(t.Context(), Config{QEMU: path}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: err = %v, want %q", path, err, want)
		}
	}
	// One on PATH is taken if it will do, else what is in the cache.
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	script(t, dir, qemuName, goodQEMU)
	if q, err := GetQEMU(t.Context(), Config{Offline: true, CacheDir: t.TempDir()}); err != nil || q.Origin != filepath.Join(dir, qemuName) {
		t.Errorf("on PATH: %+v, %v", q, err)
	}
	script(t, dir, qemuName, "echo nothing\n")
	if _, err := GetQEMU(t.Context(), Config{Offline: true, CacheDir: t.TempDir()}); !errors.Is(err, ErrMissing) {
		t.Errorf("old on PATH: %v", err)
	}
}

func TestNoAptNamesTheCure(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := GetQEMU(t.Context(), Config{CacheDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "apt-get") || !strings.Contains(err.Error(), "TOEBOX_QEMU") {
		t.Errorf("err = %v", err)
	}
}

// fakeApt puts tools on PATH that fail as apt does.
func fakeApt(t *testing.T, aptGet string) {
	t.Helper()
	dir := t.TempDir()
	script(t, dir, "apt-get", aptGet)
	script(t, dir, "apt-config", "exit 0\n")
	script(t, dir, "dpkg-deb", "exit 0\n")
	t.Setenv("PATH", dir+":/usr/bin:/bin")
}

func TestAptErrors(t *testing.T) {
	sources := fstest.MapFS{"etc/apt/sources.list": {Data: []byte("deb http://user:secret@m.invalid/debian trixie main\n")}}
	for _, test := range []struct {
		name, apt string
		c         Config
		want      []string
	}{
		{"no network", "echo 'E: Failed to fetch x  Could not resolve' >&2; exit 100\n", Config{Root: sources}, []string{"m.invalid", "Could not resolve", "TOEBOX_DEBIAN_MIRROR"}},
		{"no sources", "exit 0\n", Config{Root: fstest.MapFS{}}, []string{"TOEBOX_DEBIAN_MIRROR"}},
		{"bad mirror", "exit 0\n", Config{Mirror: "a b"}, []string{`"a b" is not the address`}},
		{"no such package", "case \"$*\" in *update*) exit 0;; esac; echo 'E: Unable to locate package' >&2; exit 100\n", Config{Root: sources}, []string{"linux-image-cloud-amd64", "Unable to locate"}},
		{"nothing to fetch", "exit 0\n", Config{Root: sources}, []string{"named no package"}},
		{"download fails", "case \"$*\" in *print-uris*) echo \"'u' linux-image-6.1-cloud-amd64_6_amd64.deb 5 h\";; *download*) echo 'E: Hash Sum mismatch' >&2; exit 100;; esac\n", Config{Root: sources}, []string{"download", "Hash Sum mismatch"}},
		{"download lies", "case \"$*\" in *print-uris*) echo \"'u' linux-image-6.1-cloud-amd64_6_amd64.deb 5 h\";; esac\n", Config{Root: sources}, []string{"0 of 1 packages"}},
		{"empty package", "case \"$*\" in *print-uris*) echo \"'u' linux-image-6.1-cloud-amd64_6_amd64.deb 5 h\";; *download*) echo > x.deb;; esac\n", Config{Root: sources}, []string{"0 images in the package"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			fakeApt(t, test.apt)
			test.c.CacheDir = t.TempDir()
			_, err := GetKernel(t.Context(), test.c)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range test.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("err = %v, want %q in it", err, w)
				}
			}
			if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\n") {
				t.Errorf("err = %q", err)
			}
			if _, err := os.Stat(filepath.Join(test.c.CacheDir, "kernel")); err == nil {
				t.Error("a failed build is in the cache")
			}
		})
	}
}
