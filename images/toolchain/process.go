// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"os"
	"syscall"
)

// ownGroup puts a child in a process group of its own.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

func killGroup(p *os.Process) error {
	return syscall.Kill(-p.Pid, syscall.SIGKILL)
}
