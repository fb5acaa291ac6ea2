// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"

	"toebox/images/vm"
)

// Exit codes of the toebox command.
const (
	ExitOK      = 0
	ExitFailed  = 1 // a test failed
	ExitUsage   = 2
	ExitCrashed = 3 // guest or firmware
	ExitSkipped = 4 // everything was
	ExitTimeout = 124
	ExitCannot  = 125 // this machine could not run it
)

// ErrDevice says that an adapter has no process any more: its keeper ended, or the device
// where there is no keeper, or the device never served.
var ErrDevice = errors.New("the device process died")

// ErrFirmware says that firmware was started which does not serve the machine.
var ErrFirmware = errors.New("the firmware does not serve")

// ExitCode returns the code for an error.
func ExitCode(err error) int {
	var status *StatusError
	var usage *UsageError
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &usage):
		return ExitUsage
	case errors.As(err, &status):
		return status.Status
	case errors.Is(err, vm.ErrPanic), errors.Is(err, vm.ErrQEMU), errors.Is(err, ErrDevice), errors.Is(err, ErrFirmware), errors.Is(err, vm.ErrKVM):
		return ExitCrashed
	case errors.Is(err, context.DeadlineExceeded):
		return ExitTimeout
	}
	return ExitCannot
}

// A StatusError is a command in the guest that ended with that exit status; there is
// nothing more to say about it.
type StatusError struct{ Status int }

func (e *StatusError) Error() string { return "the command failed" }

// A UsageError is a mistake on the command line.
type UsageError struct{ Text string }

func (e *UsageError) Error() string { return e.Text }
