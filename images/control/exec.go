// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// KindExec is the kind of request that runs a command.
const KindExec = "exec"

// Exit statuses of a shell, for commands that never ran.
const (
	StatusNotExecutable = 126
	StatusNotFound      = 127
	statusSignal        = 128 // plus the signal's number
)

// drainGrace is how long a terminal's output is read on after its command has
// ended: what a background process holds open need not be waited for.
const drainGrace = 200 * time.Millisecond

// signalNumber maps the names a [Message] may carry.
func signalNumber(name string) (syscall.Signal, bool) {
	switch name {
	case "INT":
		return syscall.SIGINT, true
	case "TERM":
		return syscall.SIGTERM, true
	case "HUP":
		return syscall.SIGHUP, true
	case "QUIT":
		return syscall.SIGQUIT, true
	case "KILL":
		return syscall.SIGKILL, true
	}
	return 0, false
}

// Exec runs the command of st's request in env, as the guest half of [Run]. The
// command's process group is killed when ctx ends.
func Exec(ctx context.Context, st *Stream, env []string) Result {
	r := st.Request()
	if len(r.Args) == 0 {
		return Result{Status: StatusNotFound, Error: "no command"}
	}
	env = append(append([]string(nil), env...), r.Env...)
	path, err := lookPath(r.Args[0], r.Dir, env)
	if err != nil {
		return Result{Status: statusOf(err), Error: err.Error()}
	}
	cmd := &exec.Cmd{Path: path, Args: r.Args, Env: env, Dir: r.Dir}
	if r.TTY {
		return execTTY(ctx, st, cmd)
	}
	return execPipes(ctx, st, cmd)
}

func statusOf(err error) int {
	if errors.Is(err, fs.ErrNotExist) {
		return StatusNotFound
	}
	return StatusNotExecutable
}

// lookPath finds a program as a shell would, by the PATH of env rather than ours.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		path := name
		if dir != "" && !strings.HasPrefix(name, "/") {
			path = dir + "/" + name
		}
		return name, executable(path)
	}
	var list string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			list = v
		}
	}
	for _, d := range strings.Split(list, ":") {
		if d != "" && executable(d+"/"+name) == nil {
			return d + "/" + name, nil
		}
	}
	return "", &fs.PathError{Op: "exec", Path: name, Err: fs.ErrNotExist}
}

func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.IsDir() || st.Mode()&0o111 == 0 {
		return &fs.PathError{Op: "exec", Path: path, Err: fs.ErrPermission}
	}
	return nil
}

// execPipes runs cmd on three pipes and returns when it has ended and all who hold
// its output have closed it.
func execPipes(ctx context.Context, st *Stream, cmd *exec.Cmd) Result {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var near [3]*os.File // our ends
	var far []*os.File   // the command's
	closeAll := func(files []*os.File) {
		for _, f := range files {
			if f != nil {
				f.Close() //nolint:errcheck // pipes
			}
		}
	}
	defer func() { closeAll(near[:]) }()
	for i := range near {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(far)
			return Result{Status: StatusNotExecutable, Error: err.Error()}
		}
		if i == 0 {
			r, w = w, r
		}
		near[i] = r
		far = append(far, w)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = far[0], far[1], far[2]
	err := cmd.Start()
	closeAll(far)
	if err != nil {
		return Result{Status: statusOf(err), Error: err.Error()}
	}
	stop := serveMessages(ctx, st, cmd.Process.Pid, nil)
	defer stop()
	go func() {
		io.Copy(near[0], st.Reader(0)) //nolint:errcheck // the command may close its input
		near[0].Close()                //nolint:errcheck // a pipe
	}()
	var copies sync.WaitGroup
	for ch := 1; ch <= 2; ch++ {
		copies.Go(func() {
			io.Copy(st.Writer(ch), near[ch]) //nolint:errcheck // the stream tells its end to all
			near[ch].Close()                 //nolint:errcheck // a pipe; the command learns by SIGPIPE
		})
	}
	// Whoever still holds the pipes when the stream is over is cut off.
	uncut := context.AfterFunc(ctx, func() { closeAll(near[1:]) })
	defer uncut()
	result := exitResult(cmd.Wait())
	copies.Wait()
	return result
}

// execTTY runs cmd on a terminal of its own.
func execTTY(ctx context.Context, st *Stream, cmd *exec.Cmd) Result {
	master, slave, err := openPTY()
	if err != nil {
		return Result{Status: StatusNotExecutable, Error: err.Error()}
	}
	defer master.Close() //nolint:errcheck // a terminal
	r := st.Request()
	setSize(master, r.Rows, r.Cols)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	err = cmd.Start()
	slave.Close() //nolint:errcheck // the command's now
	if err != nil {
		return Result{Status: statusOf(err), Error: err.Error()}
	}
	stop := serveMessages(ctx, st, cmd.Process.Pid, master)
	defer stop()
	go io.Copy(master, st.Reader(0)) //nolint:errcheck // ends with the stream or the terminal
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		io.Copy(st.Writer(1), master) //nolint:errcheck // EIO is how a terminal ends
	}()
	result := exitResult(cmd.Wait())
	master.SetReadDeadline(time.Now().Add(drainGrace)) //nolint:errcheck // the copy ends anyway
	select {
	case <-copied:
	case <-ctx.Done():
	}
	return result
}

// serveMessages passes signals and sizes on until stop is called, and kills the
// command's group when ctx ends.
func serveMessages(ctx context.Context, st *Stream, pid int, tty *os.File) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-ctx.Done():
				syscall.Kill(-pid, syscall.SIGKILL) //nolint:errcheck // gone is what we want
				return
			case m := <-st.Messages():
				if sig, ok := signalNumber(m.Signal); ok {
					syscall.Kill(-pid, sig) //nolint:errcheck // it may have ended
				}
				if tty != nil && m.Rows > 0 && m.Cols > 0 {
					setSize(tty, m.Rows, m.Cols)
				}
			}
		}
	}()
	return func() { close(done); <-ended }
}

// exitResult turns what Wait returned into a shell's exit status.
func exitResult(err error) Result {
	if err == nil {
		return Result{}
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		if ws, ok := e.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return Result{Status: statusSignal + int(ws.Signal())}
		}
		return Result{Status: e.ExitCode()}
	}
	return Result{Status: StatusNotExecutable, Error: err.Error()}
}

// openPTY makes a pseudo-terminal (pts(4)).
func openPTY() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	var n int
	raw, err := master.SyscallConn()
	if err == nil {
		var inner error
		err = raw.Control(func(fd uintptr) {
			if inner = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); inner == nil {
				n, inner = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
			}
		})
		err = errors.Join(err, inner)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close() //nolint:errcheck // the other error is the one to tell
		return nil, nil, fmt.Errorf("terminal: %w", err)
	}
	return master, slave, nil
}

func setSize(tty *os.File, rows, cols uint16) {
	if rows == 0 || cols == 0 {
		return
	}
	raw, err := tty.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { //nolint:errcheck // a wrong size is no reason to fail
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}) //nolint:errcheck // as above
	})
}
