// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"toebox/vdev/port"
)

// Delegate has cmd start in a user namespace of its own, as the same user with the
// privileges that New takes over networks made there. It says whether that is worth a
// try; starting cmd fails where such namespaces are not for this user.
func Delegate(cmd *exec.Cmd) bool {
	if unix.Access(port.TapControl, unix.R_OK|unix.W_OK) != nil {
		return false // the device's owner is nobody there
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	a := cmd.SysProcAttr
	a.Cloneflags |= unix.CLONE_NEWUSER
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN}
	return true
}
