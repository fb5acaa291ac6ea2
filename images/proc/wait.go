// SPDX-License-Identifier: Apache-2.0

package proc

import "golang.org/x/sys/unix"

// waitExited waits until pid has ended, without reaping it.
func waitExited(pid int) {
	for {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return
		}
	}
}
