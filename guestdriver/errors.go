// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"context"
	"errors"
	"net"
	"syscall"

	"toebox/vdev/abi"
)

// errClosed is net.ErrClosed under the name that the package uses inside.
var errClosed = net.ErrClosed

// ErrReset is the result of everything that was outstanding when the adapter
// was reset or its firmware replaced (IF10).
var ErrReset = errors.New("guestdriver: adapter reset, outcome unknown")

// ErrGone says that the adapter does not answer any more.
var ErrGone = errors.New("guestdriver: adapter is gone")

// ErrReadAhead says that bytes of a connection are, or may be, in buffers of the
// driver, where the adapter can neither show nor redirect them: see
// [Conn.SetReadAhead] and [Conn.Buffered].
var ErrReadAhead = errors.New("guestdriver: bytes are read ahead")

// ErrOtherQueue says that two connections are not of one queue pair; see
// [Dialer.Near].
var ErrOtherQueue = errors.New("guestdriver: connections of two queue pairs")

// statusError is a status of the adapter as an error of package net: it
// unwraps to the errno that a kernel would give, and to the [abi.Status].
type statusError struct {
	op     string // name of the system call that it stands for
	errno  syscall.Errno
	status abi.Status
}

func (e *statusError) Error() string   { return e.op + ": " + e.errno.Error() }
func (e *statusError) Unwrap() []error { return []error{e.errno, e.status} }
func (e *statusError) Timeout() bool   { return e.errno.Timeout() }
func (e *statusError) Temporary() bool { return e.errno.Temporary() }

// statusErr turns a status into an error; op names the system call that the
// request stands for.
func statusErr(op string, s abi.Status) error {
	switch s {
	case abi.StatusOK:
		return nil
	case abi.StatusTimedOut:
		return &statusError{op, syscall.ETIMEDOUT, s}
	case abi.StatusRefused:
		return &statusError{op, syscall.ECONNREFUSED, s}
	case abi.StatusReset:
		return &statusError{op, syscall.ECONNRESET, s}
	case abi.StatusHostUnreachable:
		return &statusError{op, syscall.EHOSTUNREACH, s}
	case abi.StatusNetUnreachable:
		return &statusError{op, syscall.ENETUNREACH, s}
	case abi.StatusAddressInUse:
		return &statusError{op, syscall.EADDRINUSE, s}
	case abi.StatusBadAddress, abi.StatusNoPorts:
		return &statusError{op, syscall.EADDRNOTAVAIL, s}
	case abi.StatusNoMemory:
		return &statusError{op, syscall.ENOBUFS, s}
	case abi.StatusCancelled:
		return &statusError{op, syscall.ECANCELED, s}
	case abi.StatusAborted:
		return &statusError{op, syscall.ECONNABORTED, s}
	case abi.StatusBadProtocol:
		return &statusError{op, syscall.EPROTONOSUPPORT, s}
	case abi.StatusBadConnection, abi.StatusBadState:
		return &statusError{op, syscall.ENOTCONN, s}
	case abi.StatusClosed:
		return &statusError{op, syscall.EPIPE, s}
	}
	return &statusError{op, syscall.EIO, s}
}

// timeoutError is what package net returns when a context's deadline ends a
// dial.
type timeoutError struct{}

func (timeoutError) Error() string     { return "i/o timeout" }
func (timeoutError) Timeout() bool     { return true }
func (timeoutError) Temporary() bool   { return true }
func (timeoutError) Is(err error) bool { return err == context.DeadlineExceeded }

// ctxErr turns the error of an ended context into package net's.
func ctxErr(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return timeoutError{}
	}
	return err
}
