// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestTimeRun: of a machine, which cat and a listener play, the time to the first byte is
// taken; it is there for what follows, and ends. One that ends before says why.
func TestTimeRun(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for first := true; ; first = false {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if !first { // a guest that is not up yet
				io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\n") //nolint:errcheck // the client tells
				io.Copy(io.Discard, c)                       //nolint:errcheck // until it leaves
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-served })
	port := l.Addr().(*net.TCPAddr).Port
	silent, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	var cmd *exec.Cmd
	machine := func(ctx context.Context) *exec.Cmd {
		cmd = exec.CommandContext(ctx, "sleep", "infinity")
		return cmd
	}
	there := false
	took, err := timeRun(t.Context(), machine, port, func(context.Context) error {
		there = cmd.Process.Signal(syscall.Signal(0)) == nil
		return nil
	})
	if err != nil || took <= 0 || !there {
		t.Errorf("%v, %v, there while it was wanted: %v", took, err, there)
	}
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGTERM {
		t.Errorf("the machine's end: %v", cmd.ProcessState)
	}
	broken := errors.New("broken")
	if _, err := timeRun(t.Context(), machine, port, func(context.Context) error { return broken }); !errors.Is(err, broken) || cmd.ProcessState == nil {
		t.Errorf("of what follows: %v", err)
	}
	_, err = timeRun(t.Context(), func(ctx context.Context) *exec.Cmd {
		return exec.CommandContext(ctx, "sh", "-c", "echo no disk >&2; exit 3")
	}, silent, nil)
	if err == nil || !strings.Contains(err.Error(), "sh ended by itself: exit status 3: no disk") {
		t.Errorf("a machine that does not start: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err = timeRun(ctx, func(ctx context.Context) *exec.Cmd {
		cancel(broken) // as a signal does
		return machine(ctx)
	}, silent, nil)
	if !errors.Is(err, broken) {
		t.Errorf("interrupted: %v", err)
	}
}
