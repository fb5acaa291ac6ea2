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
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/u-root/gobusybox/src/pkg/golang"
	"github.com/u-root/mkuimage/uimage"

	"toebox/images/toolchain"
)

const (
	uroot    = "github.com/u-root/u-root"
	baseFile = "base.cpio"
	// The line editor of u-root's shell that asks the terminal nothing: the other one
	// waits for answers that a script at the other end never gives.
	shellTag = "goshliner"
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
	list := sha256.Sum256([]byte(strings.Join(append(commands(), shellTag), " ")))
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

// buildBase builds within u-root's own module, whose go.sum names what its commands
// need: our own then stays free of them.
func buildBase(ctx context.Context, c Config, tmp string) error {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", uroot)
	cmd.Dir = c.Source
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("initramfs: go mod download %s: %w", uroot, errorText(err))
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil || module.Dir == "" {
		return fmt.Errorf("initramfs: go mod download %s: no directory in its answer", uroot)
	}
	var pkgs []string
	for _, name := range commands() {
		pkgs = append(pkgs, "./cmds/core/"+name)
	}
	work := filepath.Join(tmp, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	opts, err := uimage.OptionsFor(
		uimage.WithEnv(golang.WithGOOS("linux"), golang.WithGOARCH("amd64"), golang.DisableCGO(), golang.WithBuildTag(shellTag), golang.WithWorkingDir(module.Dir)),
		uimage.WithBusyboxCommands(pkgs...),
		uimage.WithSkipLDD(),
		uimage.WithTempDir(work),
		uimage.WithCPIOOutput(filepath.Join(tmp, baseFile)),
	)
	if err != nil {
		return fmt.Errorf("initramfs: u-root: %w", err)
	}
	if err := opts.Create(nil); err != nil {
		return fmt.Errorf("initramfs: u-root: %w", err)
	}
	return os.RemoveAll(work)
}

// errorText prefers what a program said to its exit status.
func errorText(err error) error {
	var e *exec.ExitError
	if errors.As(err, &e) && len(e.Stderr) > 0 {
		return errors.New(strings.TrimSpace(string(e.Stderr)))
	}
	return err
}
