// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	maxModule  = 64 << 20 // bytes, unpacked
	maxModules = 256      // in one closure
)

// A Module is one kernel module, unpacked.
type Module struct {
	Name string // as lsmod shows it
	Data []byte
}

// Modules returns the named modules and all they depend on, each after what it
// needs, so that they can be loaded in that order. Names built into the kernel are
// left out. Dependencies come from the modules themselves: the index that depmod
// makes is not in the package.
func (k *Kernel) Modules(names ...string) ([]Module, error) {
	if k.Tree == "" {
		return nil, fmt.Errorf("toolchain: modules of %s: name their directory in TOEBOX_MODULES", k.Image)
	}
	files, err := moduleFiles(k.Tree)
	if err != nil {
		return nil, fmt.Errorf("toolchain: modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(k.Tree, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("toolchain: modules: %w", err)
	}
	have := map[string]bool{}
	for l := range strings.Lines(string(builtin)) {
		have[moduleName(strings.TrimSpace(l))] = true
	}
	var all []Module
	var add func(name string) error
	add = func(name string) error {
		name = moduleName(name)
		if have[name] {
			return nil
		}
		if len(all) == maxModules {
			return fmt.Errorf("toolchain: modules: more than %d", maxModules)
		}
		have[name] = true // before its needs, so that a circle ends
		path, ok := files[name]
		if !ok {
			return fmt.Errorf("toolchain: modules: %s: not in %s", name, k.Tree)
		}
		data, err := readModule(path)
		if err != nil {
			return fmt.Errorf("toolchain: modules: %s: %w", name, err)
		}
		needs, err := depends(data)
		if err != nil {
			return fmt.Errorf("toolchain: modules: %s: %w", name, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		all = append(all, Module{Name: name, Data: data})
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// moduleFiles maps the names of the modules below tree to their files.
func moduleFiles(tree string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			files[moduleName(path)] = path
		}
		return nil
	})
	return files, err
}

// moduleName turns a path or a spelling with dashes into a module's name.
func moduleName(s string) string {
	s, _, _ = strings.Cut(filepath.Base(s), ".ko")
	return strings.ReplaceAll(s, "-", "_")
}

func readModule(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxModule {
		return nil, errors.New("too large")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
		return b, nil
	}
	return decompress(b, maxModule)
}

// depends reads the names after depends= in a module's .modinfo.
func depends(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, e := range bytes.Split(info, []byte{0}) {
		if v, ok := bytes.CutPrefix(e, []byte("depends=")); ok && len(v) > 0 {
			return strings.Split(string(v), ","), nil
		}
	}
	return nil, nil
}
