// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestStopAsksFirst(t *testing.T) {
	cmd := exec.Command("sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.Stdout = w
	p, err := Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if pgid, err := syscall.Getpgid(p.PID()); err != nil || pgid != p.PID() {
		t.Errorf("group %d of %d, %v", pgid, p.PID(), err)
	}
	p.Stop(time.Minute)
	var exit *exec.ExitError
	if err := p.Err(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("err = %v", err)
	}
	p.Signal(syscall.SIGKILL) // to nobody
	p.Stop(time.Second)
}

func TestStopKillsTheStubborn(t *testing.T) {
	cmd := exec.Command("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
	p, err := Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	p.Stop(10 * time.Millisecond)
	select {
	case <-p.Done():
	default:
		t.Error("Stop returned before the end")
	}
}

// Run ends with its context, and so does what the command started.
func TestRunKillsTheGroup(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	cmd := exec.Command("sh", "-c", "sleep 1000 & echo ready; wait")
	cmd.Stdout = w
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cmd); w.Close() }()
	out := bufio.NewReader(r)
	if line, err := out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	cancel(os.ErrProcessDone)
	if err := <-ended; err != os.ErrProcessDone {
		t.Errorf("err = %v", err)
	}
	// The grandchild held the pipe's other end.
	r.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := out.ReadByte(); err != io.EOF {
		t.Errorf("the grandchild lives: %v", err)
	}
	if err := Run(ctx, exec.Command("true")); err != os.ErrProcessDone {
		t.Errorf("after the end: %v", err)
	}
	if err := Run(t.Context(), exec.Command("true")); err != nil {
		t.Errorf("true: %v", err)
	}
}

func TestStartError(t *testing.T) {
	if _, err := Start(exec.Command("/no/such/program")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("err = %v", err)
	}
}

// The child of a killed parent goes with it.
func TestDiesWithParent(t *testing.T) {
	if os.Getenv("PROC_TEST_PARENT") != "" {
		p, err := Start(exec.Command("sleep", "1000"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("pid=%d\n", p.PID())
		<-p.Done()
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestDiesWithParent$")
	cmd.Env = append(os.Environ(), "PROC_TEST_PARENT=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for sc := bufio.NewScanner(out); pid == 0 && sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "pid="); ok {
			if pid, err = strconv.Atoi(v); err != nil {
				t.Fatal(err)
			}
		}
	}
	if pid == 0 {
		t.Fatal("no child")
	}
	// A pidfd tells of the end of a process that is nobody's child here.
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	cmd.Process.Kill()
	cmd.Wait()
	ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(time.Minute); ; {
		n, err := unix.Poll(ended, int(max(0, time.Until(end)).Milliseconds()))
		if n == 1 {
			return
		}
		if err != unix.EINTR {
			syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("the child lives on (%v)", err)
		}
	}
}
