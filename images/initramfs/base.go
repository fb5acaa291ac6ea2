// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"toebox/images/toolchain"
)

const (
	uroot    = "github.com/u-root/u-root"
	baseFile = "base.cpio"
	// basePackage builds them.
	basePackage = "./images/initramfs/cmd/tbbase"
	// baseRecipe changes when basePackage builds something else of the same commands.
	baseRecipe = "goshliner"
)

// commands are u-root's that a guest gets, below cmds/core.
func commands() []string {
	return strings.Fields(`
		base64 basename cat chmod cmp comm cp cpio date dd df dirname dmesg du echo false find free
		gosh grep gzip head hexdump hostname id insmod ip kill ln ls lsfd lsmod md5sum mkdir mkfifo
		mknod mktemp more mount mv netcat netstat nohup pci pidof ping poweroff printenv ps pwd
		readlink realpath rm rmmod seq shasum sleep sort strace strings stty sync tail tar tee time
		timeout touch tr true truncate tty umount uname uniq uptime wc wget which xargs yes`)
}

// Config says where things are.
type Config struct {
	CacheDir string // e.g. $XDG_CACHE_HOME/toebox
	Source   string // root of the toebox module
	Progress toolchain.Progress
}

func say(p toolchain.Progress, line string) {
	if p != nil {
		p.Step(line)
	}
}

// Base returns the archive with u-root's commands, which it builds the first time.
func Base(ctx context.Context, c Config) (string, error) {
	sum, err := urootSum(c.Source)
	if err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	list := sha256.Sum256([]byte(strings.Join(append(commands(), baseRecipe), " ")))
	key := strings.Join([]string{"u-root", sum, runtime.Version(), hex.EncodeToString(list[:8])}, " ")
	dir := filepath.Join(c.CacheDir, "u-root")
	_, err = toolchain.Ensure(ctx, dir, key, c.Progress, func(ctx context.Context, tmp string) (toolchain.Manifest, error) {
		say(c.Progress, "u-root: building the guest's commands (once, about a minute)")
		return toolchain.Manifest{Values: map[string]string{"u-root": sum}}, buildBase(ctx, c, tmp)
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, baseFile), nil
}

// urootSum returns version and hash of u-root from the module's go.sum.
func urootSum(source string) (string, error) {
	f, err := os.Open(filepath.Join(source, "go.sum"))
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		w := strings.Fields(sc.Text())
		if len(w) == 3 && w[0] == uroot && !strings.HasSuffix(w[1], "/go.mod") {
			return w[1] + " " + w[2], nil
		}
	}
	return "", errors.Join(errors.New("go.sum does not name "+uroot), sc.Err())
}

// buildBase has a program of its own build, which can be ended with all it started.
func buildBase(ctx context.Context, c Config, tmp string) error {
	work := filepath.Join(tmp, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	out, err := goTool(ctx, c.Source, work, "mod", "download", "-json", uroot)
	if err != nil {
		return fmt.Errorf("initramfs: go mod download %s: %w", uroot, err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil || module.Dir == "" {
		return fmt.Errorf("initramfs: go mod download %s: no directory in its answer", uroot)
	}
	args := []string{"run", basePackage, "-module", module.Dir, "-work", work, "-o", filepath.Join(tmp, baseFile)}
	for _, name := range commands() {
		args = append(args, "./cmds/core/"+name)
	}
	if _, err := goTool(ctx, c.Source, work, args...); err != nil {
		return fmt.Errorf("initramfs: u-root: %w", err)
	}
	return os.RemoveAll(work)
}
