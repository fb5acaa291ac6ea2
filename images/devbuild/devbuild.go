// SPDX-License-Identifier: Apache-2.0

package devbuild

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/build"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"toebox/images/proc"
)

const (
	devicePackage = "toebox/vdev/cmd/toebox-device"
	firmwareFile  = "vdev/cmd/toebox-device/firmware.go" // below the tree's root
)

// Config says what to build.
type Config struct {
	Source string // root of the toebox module
	Temp   string // directory for temporary files; "": the system's
	// Firmware is a directory of a package, absolute or with a dot in front, or
	// an import path of the tree. Empty: the tree's own firmware.
	Firmware string
}

// An Error is a build that failed by its source.
type Error struct {
	Output string // of the go command
}

func (e *Error) Error() string { return "the firmware does not build:\n" + e.Output }

// Build builds the device process and writes it to out.
func Build(ctx context.Context, c Config, out string) error {
	_, err := c.run(ctx, "build", "-buildvcs=false", "-trimpath", "-gcflags=toebox/...=-dwarf=false", "-ldflags=-s -w", "-o", out)
	return err
}

// Dirs lists the directories whose Go files the program is built from, the standard
// library's and those of modules in the module cache not included.
func Dirs(ctx context.Context, c Config) ([]string, error) {
	text, err := c.run(ctx, "list", "-e", "-deps", "-f", "{{if and .Module .Module.Main}}{{.Dir}}{{end}}")
	if err != nil {
		return nil, err
	}
	dirs := strings.Fields(strings.ReplaceAll(text, " ", "\x00"))
	for i := range dirs {
		dirs[i] = strings.ReplaceAll(dirs[i], "\x00", " ")
	}
	slices.Sort(dirs)
	return slices.Compact(dirs), nil
}

// run runs the go command on the device's package.
func (c *Config) run(ctx context.Context, verb string, args ...string) (string, error) {
	tmp, err := os.MkdirTemp(c.Temp, "toebox-build-")
	if err != nil {
		return "", fmt.Errorf("devbuild: %w", err)
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // only wasted space if it stays
	args = append([]string{verb}, args...)
	env := append(os.Environ(), "CGO_ENABLED=0", "GOAMD64=v1", "GOOS=linux", "GOARCH=amd64", "GOTMPDIR="+tmp,
		// The compiler and the linker live for a second: they need no collector.
		"GOGC=off")
	if c.Firmware != "" {
		more, work, err := c.graft(ctx, tmp)
		if err != nil {
			return "", err
		}
		args = append(args, more...)
		env = append(env, "GOWORK="+work)
	}
	return c.tool(ctx, c.Source, env, append(args, devicePackage)...)
}

// graft writes what makes the go command take another firmware, and returns its flags
// and the workspace to use.
func (c *Config) graft(ctx context.Context, tmp string) (flags []string, work string, err error) {
	path, root, version, err := c.find(ctx)
	if err != nil {
		return nil, "", err
	}
	code := "package main\n\nimport (\n\t\"toebox/firmware\"\n\t\"toebox/vdev\"\n\n\tcustom " + strconv.Quote(path) + "\n)\n\n" +
		"func newFirmware(c firmware.Config) (vdev.Firmware, vdev.Counters) { return custom.New(c) }\n"
	instead := filepath.Join(tmp, "firmware.go")
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(c.Source, filepath.FromSlash(firmwareFile)): instead}})
	if err != nil {
		return nil, "", fmt.Errorf("devbuild: %w", err)
	}
	use := "use " + strconv.Quote(c.Source) + "\n"
	if root != c.Source {
		use += "use " + strconv.Quote(root) + "\n"
	}
	work = filepath.Join(tmp, "go.work")
	for name, data := range map[string]string{instead: code, filepath.Join(tmp, "overlay.json"): string(overlay), work: "go " + version + "\n" + use} {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			return nil, "", fmt.Errorf("devbuild: %w", err)
		}
	}
	return []string{"-mod=readonly", "-overlay=" + filepath.Join(tmp, "overlay.json")}, work, nil
}

// find returns the import path of the firmware, the root of its module, and the
// version of the language that a workspace of it and the tree has to name.
func (c *Config) find(ctx context.Context) (path, root, version string, err error) {
	module, version, err := c.module(ctx, c.Source)
	if err != nil {
		return "", "", "", err
	}
	path, root = c.Firmware, c.Source
	dir := filepath.Join(c.Source, filepath.FromSlash(strings.TrimPrefix(path, module)))
	if filepath.IsAbs(path) || strings.HasPrefix(path, ".") {
		if dir, err = filepath.Abs(path); err != nil {
			return "", "", "", fmt.Errorf("devbuild: %w", err)
		}
		if root = above(dir); root == "" {
			return "", "", "", fmt.Errorf("devbuild: %s is in no module: go mod init makes one", dir)
		}
		if sameDir(root, c.Source) { // by another name, maybe: a workspace takes one
			dir, root = filepath.Join(c.Source, strings.TrimPrefix(dir, root)), c.Source
		}
		name, its, err := c.module(ctx, root)
		if err != nil {
			return "", "", "", err
		}
		if newer(its, version) {
			version = its
		}
		rel, err := filepath.Rel(root, dir)
		if err != nil {
			return "", "", "", fmt.Errorf("devbuild: %w", err)
		}
		path = strings.TrimSuffix(name+"/"+filepath.ToSlash(rel), "/.")
	} else if path != module && !strings.HasPrefix(path, module+"/") {
		return "", "", "", fmt.Errorf("devbuild: %s is neither a directory (with a dot in front) nor a package of module %s", path, module)
	}
	p, err := build.ImportDir(dir, 0)
	switch {
	case err != nil:
		return "", "", "", fmt.Errorf("devbuild: %w", err)
	case p.Name == "main":
		return "", "", "", fmt.Errorf("devbuild: %s is a program, not a package that exports New", dir)
	}
	return path, root, version, nil
}

// above returns the root of the module that dir is in; "": none.
func above(dir string) string {
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
}

// sameDir reports whether two paths lead to one directory.
func sameDir(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// module returns path and language version of the module at root. It looks at nothing
// but its go.mod.
func (c *Config) module(ctx context.Context, root string) (path, version string, err error) {
	text, err := c.tool(ctx, root, os.Environ(), "mod", "edit", "-json")
	if err != nil {
		return "", "", err
	}
	var m struct {
		Module struct{ Path string }
		Go     string
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return "", "", fmt.Errorf("devbuild: %s: %w", root, err)
	}
	return m.Module.Path, m.Go, nil
}

// newer compares versions of the language, as 1.26 or 1.26.8.
func newer(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(x), len(y)) {
		m, err1 := strconv.Atoi(x[i])
		n, err2 := strconv.Atoi(y[i])
		if err1 != nil || err2 != nil || m != n {
			return m > n
		}
	}
	return len(x) > len(y)
}

// tool runs the go command in dir and returns what it printed. It does not outlive
// ctx, nor do the programs it runs.
func (c *Config) tool(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = dir, append(env, "PWD="+dir) // the go command keeps to the name of dir then
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := proc.Run(ctx, cmd)
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", errors.New("devbuild: go is not on PATH: install Go (https://go.dev/dl)")
	case errors.As(err, &exit):
		return "", &Error{Output: strings.TrimSpace(errs.String())}
	case err != nil:
		return "", fmt.Errorf("devbuild: %w", err)
	}
	return out.String(), nil
}
