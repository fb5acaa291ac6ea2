// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"toebox/ci/netns"
	"toebox/images/rig"
)

// delegated in the environment says that this is the command that delegate runs.
const delegated = "TOEBOX_DELEGATED"

// delegate runs this command once more, as one that may make networks of the kernel's,
// if this user may not and can have that, in a user namespace. It says whether it did.
func (a *app) delegate() (did bool, err error) {
	if os.Getenv(delegated) != "" || !errors.Is(netns.Try(), netns.ErrPrivilege) {
		return false, nil
	}
	cmd := exec.Command("/proc/self/exe", a.args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if !netns.Delegate(cmd) {
		return false, nil
	}
	err = a.again(cmd, delegated)
	if status := (*rig.StatusError)(nil); err != nil && !errors.As(err, &status) {
		return false, nil // no user namespaces for this user
	}
	return true, err
}

// again runs cmd, this command once more, with a variable of the environment set, and
// passes signals on. Its exit status, if it is not 0, is a rig.StatusError.
func (a *app) again(cmd *exec.Cmd, variable string) error {
	cmd.Env = append(os.Environ(), variable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	// Pdeathsig is about the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case s := <-a.signals:
				_ = cmd.Process.Signal(s) // it has ended
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(done)
	<-passed
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &rig.StatusError{Status: max(exit.ExitCode(), rig.ExitFailed)}
	}
	return err
}
