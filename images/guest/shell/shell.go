// SPDX-License-Identifier: Apache-2.0

package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/term"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

const (
	moreLines     = "> " // prompt within an unfinished statement
	maxStatement  = 64 << 10
	statusFailed  = 1
	statusSyntax  = 2
	statusStopped = 130 // by SIGINT
)

// A shell is one session at a terminal.
type shell struct {
	tty    *os.File
	sane   *term.State // of the terminal, whatever programs made of it
	out    io.Writer
	errs   io.Writer
	keys   *keys
	lines  *term.Terminal
	parser *syntax.Parser
	runner *interp.Runner
	stop   context.CancelFunc // of the statements that run
	status int
}

// Run reads statements from a terminal and runs them, until one is "exit" or the
// terminal ends. It returns the status to exit with.
func Run(tty, out, errs *os.File) (int, error) {
	if !term.IsTerminal(int(tty.Fd())) {
		return statusFailed, errors.New("the input is no terminal: use sh")
	}
	sane, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return statusFailed, err
	}
	// Between statements, too, Ctrl-C is no reason to end.
	unheard := make(chan os.Signal, 1)
	signal.Notify(unheard, os.Interrupt)
	defer signal.Stop(unheard)
	s := &shell{tty: tty, sane: sane, out: out, errs: errs, keys: &keys{r: tty}, parser: syntax.NewParser()}
	s.lines = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{s.keys, out}, "")
	s.lines.AutoCompleteCallback = s.complete
	s.runner, err = interp.New(interp.Interactive(true), interp.StdIO(tty, out, errs), interp.ExecHandlers(s.patient))
	if err != nil {
		return statusFailed, err
	}
	s.runner.Reset()
	for !s.runner.Exited() {
		text, err := s.read()
		if err == io.EOF {
			break
		}
		if err != nil {
			return statusFailed, err
		}
		s.run(text)
	}
	return s.status, nil
}

// patient lets a program end by itself when the statement is stopped, and starts none
// after that. One that died of Ctrl-C stops it: our own signal may be late.
func (s *shell) patient(next interp.ExecHandlerFunc) interp.ExecHandlerFunc {
	return func(ctx context.Context, args []string) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := next(context.WithoutCancel(ctx), args)
		if status, ok := interp.IsExitStatus(err); ok && status == statusStopped {
			s.stop()
		}
		return err
	}
}

// read returns the next statements, which may take several lines.
func (s *shell) read() (string, error) {
	if _, err := term.MakeRaw(int(s.tty.Fd())); err != nil {
		return "", err
	}
	defer term.Restore(int(s.tty.Fd()), s.sane) //nolint:errcheck // nothing to be done
	if w, h, err := term.GetSize(int(s.tty.Fd())); err == nil && w > 0 && h > 0 {
		s.lines.SetSize(w, h) //nolint:errcheck // a wrong size is no reason to fail
	}
	var text strings.Builder
	s.lines.SetPrompt(s.runner.Dir + "# ")
	for {
		line, err := s.lines.ReadLine()
		if err != nil {
			return "", err
		}
		if s.keys.takeStop() {
			text.Reset()
			s.lines.SetPrompt(s.runner.Dir + "# ")
			continue
		}
		text.WriteString(line + "\n")
		_, err = s.parser.Parse(strings.NewReader(text.String()), "")
		if !syntax.IsIncomplete(err) || text.Len() > maxStatement {
			return text.String(), nil
		}
		s.lines.SetPrompt(moreLines)
	}
}

// run runs statements, until one fails to parse, is stopped or leaves the shell.
func (s *shell) run(text string) {
	file, err := s.parser.Parse(strings.NewReader(text), "")
	if err != nil {
		fmt.Fprintf(s.errs, "%v\n", err)
		s.status = statusSyntax
		return
	}
	ctx, forget := signal.NotifyContext(context.Background(), os.Interrupt)
	defer forget()
	ctx, s.stop = context.WithCancel(ctx)
	defer s.stop()
	for _, stmt := range file.Stmts {
		err := s.runner.Run(ctx, stmt)
		status, ok := interp.IsExitStatus(err)
		switch s.status = int(status); {
		case ctx.Err() != nil:
			fmt.Fprintln(s.out)
			s.status = statusStopped
			return
		case err != nil && !ok:
			fmt.Fprintf(s.errs, "%v\n", err)
			s.status = statusFailed
		}
		if s.runner.Exited() {
			return
		}
	}
}

const (
	ctrlC = 0x03
	// discard makes the editor empty its line and return it: end of line, delete all
	// before the cursor, enter.
	discard = "\x05\x15\r"
)

// keys turns Ctrl-C, which the editor takes for the end, into an empty line.
type keys struct {
	r       io.Reader
	pending []byte
	stop    bool
}

func (k *keys) Read(p []byte) (int, error) {
	if len(k.pending) == 0 {
		b := make([]byte, max(1, len(p)))
		n, err := k.r.Read(b)
		if n == 0 {
			return 0, err
		}
		for _, c := range b[:n] {
			if c == ctrlC {
				k.stop = true
				k.pending = append(k.pending, discard...)
				continue
			}
			k.pending = append(k.pending, c)
		}
	}
	n := copy(p, k.pending)
	k.pending = k.pending[n:]
	return n, nil
}

// takeStop says whether Ctrl-C was read since the last call.
func (k *keys) takeStop() bool {
	stop := k.stop
	k.stop = false
	return stop
}
