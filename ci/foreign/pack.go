// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"toebox/images/initramfs"
)

const (
	guestDir     = "driver" // in the guest, without leading slash
	guestProgram = "driver" // of a folder
	maxPacked    = 256 << 20
)

// Pack returns what a guest needs to run a command, whose first word names a file
// or a folder of this machine, and the program and its arguments there. Of a
// folder the file "driver" is run.
func Pack(command string) (files []initramfs.File, args []string, err error) {
	args = strings.Fields(command)
	if len(args) == 0 {
		return nil, nil, fmt.Errorf("foreign: pack: no file or folder is named")
	}
	from, err := filepath.Abs(args[0])
	if err != nil {
		return nil, nil, fmt.Errorf("foreign: pack: %w", err)
	}
	st, err := os.Stat(from)
	if err != nil {
		return nil, nil, fmt.Errorf("foreign: pack: %w", err)
	}
	if !st.IsDir() {
		args[0] = path.Join("/", guestDir, filepath.Base(from))
		b, err := os.ReadFile(from)
		if err != nil {
			return nil, nil, fmt.Errorf("foreign: pack: %w", err)
		}
		return []initramfs.File{{Path: args[0][1:], Mode: 0o755, Data: b}}, args, nil
	}
	program := filepath.Join(from, guestProgram)
	if st, err := os.Stat(program); err != nil || st.IsDir() || st.Mode()&0o111 == 0 {
		return nil, nil, fmt.Errorf("foreign: pack: no program %s", program)
	}
	args[0] = path.Join("/", guestDir, guestProgram)
	if files, err = packFolder(from); err != nil {
		return nil, nil, fmt.Errorf("foreign: pack: %w", err)
	}
	return files, args, nil
}

// packFolder takes a folder along, with the links in it.
func packFolder(from string) (files []initramfs.File, err error) {
	total := int64(0)
	err = filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil || rel == "." {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		f := initramfs.File{Path: path.Join(guestDir, filepath.ToSlash(rel)), Mode: st.Mode()}
		switch {
		case st.Mode().IsDir():
		case st.Mode().IsRegular():
			if total += st.Size(); total > maxPacked {
				return fmt.Errorf("%s is more than %d MiB", from, maxPacked>>20)
			}
			f.Data, err = os.ReadFile(p)
		case st.Mode()&fs.ModeSymlink != 0:
			f.Link, err = os.Readlink(p)
		default:
			return nil // a socket, a device
		}
		files = append(files, f)
		return err
	})
	return files, err
}
