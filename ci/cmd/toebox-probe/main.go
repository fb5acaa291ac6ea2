// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"toebox/guestdriver/vfio"
)

// patience bounds each wait for a device. Without KVM a guest is slow, and a
// processor of it may stand still.
const patience = 20 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: toebox-probe edu | edu-load | sample | failover ECHO BYTES | repeat PROGRAM [ARGUMENT...] | reboot")
		os.Exit(2)
	}
	if err := run(ctx, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "toebox-probe %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func run(ctx context.Context, verb string, args []string) error {
	switch verb {
	case "edu":
		return withEdu(check)
	case "edu-load":
		return withEdu(func(e *edu) error { return load(ctx, e) })
	case "sample":
		return sample()
	case "failover":
		if len(args) != 2 {
			return errors.New("failover: where is the echo, and how many bytes?")
		}
		total, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return failover(ctx, args[0], total)
	case "repeat":
		return repeat(ctx, args)
	case "reboot":
		// At once: nothing is told to stop first.
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	return errors.New("no such verb")
}

func repeat(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("repeat what?")
	}
	for ctx.Err() == nil {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	return nil
}

// open binds the function with these ids, as sysfs prints them, to vfio-pci and
// opens it, for DMA up to mask.
func open(vendor, device string, mask uint64) (*vfio.Bus, error) {
	const devices = "/sys/bus/pci/devices"
	found, err := filepath.Glob(devices + "/*")
	if err != nil {
		return nil, err
	}
	for _, dir := range found {
		if attribute(dir, "vendor") != vendor || attribute(dir, "device") != device {
			continue
		}
		bdf := filepath.Base(dir)
		if err := vfio.Bind(bdf); err != nil {
			return nil, err
		}
		return vfio.OpenMasked(bdf, mask)
	}
	return nil, fmt.Errorf("no function %s:%s on the bus", vendor, device)
}

func attribute(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
