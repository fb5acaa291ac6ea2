// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"toebox/vdev/port"
)

// Isolate has cmd start in a network namespace of its own, which ends with the last
// process in it. It takes what New takes.
func Isolate(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
}

// Plug makes a tap device in the calling thread's namespace, for somebody else to open
// by its name. The device lasts as long as the namespace; address is the kernel's on it.
func Plug(name string, address netip.Prefix) error {
	if !address.Addr().Is4() {
		return fmt.Errorf("netns: %v is no IPv4 address with prefix length", address)
	}
	tap, err := port.OpenTap(name)
	if err != nil {
		return fmt.Errorf("netns: %w", err)
	}
	err = unix.IoctlSetInt(int(tap.Fd()), unix.TUNSETPERSIST, 1)
	if err == nil {
		err = setUp(name, address)
	}
	if err := errors.Join(err, tap.Close()); err != nil {
		return fmt.Errorf("netns: %w", err)
	}
	return nil
}

// Loopback turns the calling thread's loopback on, as Plug does, too.
func Loopback() error {
	ifr, err := unix.NewIfreq("lo")
	if err == nil {
		ifr.SetUint16(unix.IFF_UP)
		err = ioctl(unix.SIOCSIFFLAGS, ifr)
	}
	if err != nil {
		return fmt.Errorf("netns: loopback: %w", err)
	}
	return nil
}
