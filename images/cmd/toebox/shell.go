// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"toebox/images/control"
	"toebox/images/guest"
	"toebox/images/rig"
)

// errQuit is Ctrl-A X.
var errQuit = errors.New("ended by Ctrl-A X")

// ShellCmd opens a shell in the running machine.
type ShellCmd struct{}

// Run is called by kong.
func (c *ShellCmd) Run(a *app) error {
	ctx, cancel := a.interruptible()
	defer cancel()
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // the process ends
	err = a.shell(ctx, s, nil, nil)
	if errors.Is(err, errQuit) {
		return nil
	}
	return err
}

// ExecCmd runs a command in the running machine.
type ExecCmd struct {
	Adapter `embed:""`
	TTY     bool     `name:"tty" short:"t" help:"Give the command a terminal."`
	Env     []string `name:"env" short:"e" sep:"none" placeholder:"NAME=VALUE" help:"Set a variable for the command."`
	Dir     string   `name:"dir" short:"C" placeholder:"DIR" help:"Directory of the guest to run it in."`
	Command []string `arg:"" passthrough:"" help:"Command and its arguments, after --."`
}

// Run is called by kong.
func (c *ExecCmd) Run(a *app) error {
	args := c.Command
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return &rig.UsageError{Text: "exec: no command"}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	run, err := rig.Running(a.paths)
	if err != nil {
		return err
	}
	if err := run.Has(c.Adapter.Adapter); err != nil {
		return err
	}
	s, err := rig.Dial(ctx, run)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // the process ends
	r := control.Request{Args: args, Env: append(c.Adapter.variables(), c.Env...), Dir: c.Dir}
	messages := make(chan control.Message)
	go a.forward(ctx, messages, cancel)
	if c.TTY {
		return a.shell(ctx, s, &r, messages)
	}
	result, err := control.Run(ctx, s, r, control.Streams{Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr, Messages: messages})
	return a.result(result, err)
}

// variables are what toebox-guest finds the adapter by.
func (a *Adapter) variables() []string {
	if a.Adapter == 0 {
		return nil
	}
	return []string{fmt.Sprintf("TOEBOX_ADAPTER=%d", a.Adapter)}
}

// forward passes the first signal on to the command and gives up at the second.
func (a *app) forward(ctx context.Context, to chan<- control.Message, giveUp context.CancelCauseFunc) {
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case s := <-a.signals:
			name := "TERM"
			switch s {
			case os.Interrupt:
				name = "INT"
			case syscall.SIGHUP:
				name = "HUP"
			}
			if !first {
				giveUp(interrupted{s})
				return
			}
			select {
			case to <- control.Message{Signal: name}:
			case <-ctx.Done():
				return
			case <-a.signals:
				giveUp(interrupted{s})
				return
			}
		}
	}
}

// connect opens a session with the newest running machine.
func (a *app) connect(ctx context.Context) (*control.Session, error) {
	r, err := rig.Running(a.paths)
	if err != nil {
		return nil, err
	}
	return rig.Dial(ctx, r)
}

// result turns a command's result into an error.
func (a *app) result(r control.Result, err error) error {
	if err != nil {
		return err
	}
	if r.Error != "" {
		fmt.Fprintln(a.stderr, "toebox: guest:", r.Error)
	}
	if r.Status != 0 {
		return &rig.StatusError{Status: r.Status}
	}
	return nil
}

// shell runs a request, a shell if nil, on a terminal of the guest that is this
// process's terminal. messages may carry more to it.
func (a *app) shell(ctx context.Context, s *control.Session, r *control.Request, messages chan control.Message) error {
	if r == nil {
		r = &control.Request{Args: []string{guest.Shell}, Dir: "/root"}
	}
	r.TTY = true
	if t := os.Getenv("TERM"); t != "" {
		r.Env = append(r.Env, "TERM="+t)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if messages == nil {
		messages = make(chan control.Message)
	}
	fd := int(a.stdin.Fd())
	in := io.Reader(a.stdin)
	if term.IsTerminal(fd) {
		if w, h, err := term.GetSize(fd); err == nil {
			r.Rows, r.Cols = uint16(h), uint16(w)
		}
		old, err := term.MakeRaw(fd)
		if err != nil {
			return fmt.Errorf("terminal: %w", err)
		}
		a.report.setRaw(true)
		defer func() {
			term.Restore(fd, old) //nolint:errcheck // nothing to be done
			a.report.setRaw(false)
		}()
		in = &escapes{r: a.stdin, quit: func() { cancel(errQuit) }}
		resized := make(chan os.Signal, 1)
		signal.Notify(resized, syscall.SIGWINCH)
		defer signal.Stop(resized)
		go func() {
			for {
				select {
				case <-resized:
				case <-ctx.Done():
					return
				}
				w, h, err := term.GetSize(fd)
				if err != nil {
					continue
				}
				select {
				case messages <- control.Message{Rows: uint16(h), Cols: uint16(w)}:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	result, err := control.Run(ctx, s, *r, control.Streams{Stdin: in, Stdout: a.stdout, Stderr: a.stderr, Messages: messages})
	return a.result(result, err)
}

const (
	escape = 0x01 // Ctrl-A, as in QEMU's and minicom's consoles
	ctrlX  = 0x18
)

// escapes passes a terminal's bytes on and acts on Ctrl-A X; Ctrl-A twice is Ctrl-A.
type escapes struct {
	r       io.Reader
	quit    func()
	pending bool // the last byte was an escape
}

func (e *escapes) Read(p []byte) (int, error) {
	for {
		n, err := e.r.Read(p)
		out := p[:0]
		for _, b := range p[:n] {
			switch {
			case e.pending && (b == 'x' || b == 'X' || b == ctrlX):
				e.quit()
				return len(out), io.EOF
			case e.pending && b != escape:
				// The escape meant nothing: only what followed it goes on.
				e.pending = false
				out = append(out, b)
			case e.pending:
				e.pending = false
				out = append(out, escape)
			case b == escape:
				e.pending = true
			default:
				out = append(out, b)
			}
		}
		if len(out) > 0 || err != nil {
			return len(out), err
		}
	}
}
