// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"toebox/images/proc"
	"toebox/images/toolchain"
)

const (
	// buildNotice is after how long a build is worth a line.
	buildNotice = 2 * time.Second
	// sumsFile holds the hashes of the programs beside it.
	sumsFile = "sums.json"
	// workPrefix starts the names of directories for the go command's own files.
	workPrefix = "tmp-"
)

// Programs builds packages of the module at c.Source for the host or the guest,
// both being this machine's kind, and returns the directory with the results.
func Programs(ctx context.Context, c Config, packages ...string) (string, error) {
	where := sha256.Sum256([]byte(c.Source))
	dir := filepath.Join(c.CacheDir, "build", hex.EncodeToString(where[:8]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("initramfs: build: %w", err)
	}
	unlock, err := toolchain.Lock(ctx, dir+".lock", c.Progress)
	if err != nil {
		return "", fmt.Errorf("initramfs: build: %w", err)
	}
	defer unlock()
	dropDamaged(dir)
	// Being on the same file system, programs arrive by renaming: whole or not at all.
	work, err := os.MkdirTemp(dir, workPrefix)
	if err != nil {
		return "", fmt.Errorf("initramfs: build: %w", err)
	}
	defer os.RemoveAll(work) //nolint:errcheck // gone already when all went well
	slow := time.AfterFunc(buildNotice, func() {
		say(c.Progress, "go: building device and guest programs (the first time takes minutes)")
	})
	defer slow.Stop()
	args := append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", dir + "/"}, packages...)
	if _, err := goTool(ctx, c.Source, work, args...); err != nil {
		return "", fmt.Errorf("initramfs: go build: %w", err)
	}
	if err := os.RemoveAll(work); err != nil {
		return "", fmt.Errorf("initramfs: build: %w", err)
	}
	if err := writeSums(dir); err != nil {
		return "", fmt.Errorf("initramfs: build: %w", err)
	}
	return dir, nil
}

// dropDamaged removes what killed builds left in dir, and programs that are not what
// their builds wrote: the go command takes a program for up to date by its first
// bytes.
func dropDamaged(dir string) {
	var sums map[string]string
	b, err := os.ReadFile(filepath.Join(dir, sumsFile))
	if err != nil || json.Unmarshal(b, &sums) != nil {
		sums = nil
	}
	for _, p := range programsIn(dir) {
		if sum, err := toolchain.HashFile(p); err != nil || sums[filepath.Base(p)] != sum {
			os.RemoveAll(p) //nolint:errcheck // the build tells if it is in its way
		}
	}
}

// writeSums stores the hashes of the programs in dir.
func writeSums(dir string) error {
	sums := map[string]string{}
	for _, p := range programsIn(dir) {
		sum, err := toolchain.HashFile(p)
		if err != nil {
			return err
		}
		sums[filepath.Base(p)] = sum
	}
	b, err := json.Marshal(sums)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, sumsFile), b, 0o644)
}

// programsIn lists what is in dir besides the hashes.
func programsIn(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var paths []string
	for _, e := range entries {
		if e.Name() != sumsFile {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths
}

// goTool runs the go command in dir with its temporary files in work, and returns
// what it printed. It does not outlive ctx, nor do the programs it runs.
func goTool(ctx context.Context, dir, work string, args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOAMD64=v1", "GOOS=linux", "GOARCH=amd64", "GOTMPDIR="+work)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := proc.Run(ctx, cmd)
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, errors.New("go is not on PATH: install Go (https://go.dev/dl)")
	case errors.As(err, &exit):
		return nil, fmt.Errorf("%w\n%s", err, bytes.TrimSpace(errs.Bytes()))
	case err != nil:
		return nil, err
	}
	return out.Bytes(), nil
}
