// SPDX-License-Identifier: Apache-2.0

package shell

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
)

const asShell = "SHELL_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(asShell) != "" {
		status, err := Run(os.Stdin, os.Stdout, os.Stderr)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(status)
	}
	os.Exit(m.Run())
}

// A session is a shell at the other end of a terminal.
type session struct {
	t    *testing.T
	tty  *os.File
	cmd  *exec.Cmd
	seen []byte
}

func start(t *testing.T) *session {
	t.Helper()
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	raw, err := tty.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	var inner error
	err = raw.Control(func(fd uintptr) {
		if inner = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); inner == nil {
			n, inner = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err := errors.Join(err, inner); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &session{t: t, tty: tty, cmd: exec.Command(exe)}
	s.cmd.Dir = "/"
	s.cmd.Env = append(os.Environ(), asShell+"=1")
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.cmd.Process.Kill() })
	return s
}

func (s *session) send(text string) {
	s.t.Helper()
	if _, err := s.tty.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// expect reads until text came, and forgets what came up to it.
func (s *session) expect(text string) {
	s.t.Helper()
	s.tty.SetReadDeadline(time.Now().Add(60 * time.Second))
	b := make([]byte, 4096)
	for !bytes.Contains(s.seen, []byte(text)) {
		n, err := s.tty.Read(b)
		s.seen = append(s.seen, b[:n]...)
		if err != nil {
			s.t.Fatalf("no %q in ...%q: %v", text, s.seen[max(0, len(s.seen)-200):], err)
		}
	}
	_, s.seen, _ = bytes.Cut(s.seen, []byte(text))
}

// wait returns the shell's exit status.
func (s *session) wait() int {
	s.t.Helper()
	ended := make(chan struct{})
	go func() { s.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(60 * time.Second):
		s.t.Fatal("the shell goes on")
	}
	return s.cmd.ProcessState.ExitCode()
}

func TestStatements(t *testing.T) {
	s := start(t)
	s.expect("/# ")
	for _, step := range [][2]string{
		{"x=4; echo $((x+3))$x\r", "\r\n74\r\n/# "},
		{"cd /dev\r", "/dev# "},
		{"for i in 1 2\r", "> "},
		{"do echo n$i; done\r", "\r\nn1\r\nn2\r\n/dev# "},
		{"( exit 9 ); echo s$?\r", "\r\ns9\r\n/dev# "},
		{"nosuchprogram\r", "/dev# "},
		{"echo )\r", "/dev# "},
		{"echo still $x\r", "still 4\r\n/dev# "},
		{"stty raw; echo raw\r", "/dev# "}, // undone
		{"echo sane\r", "sane\r\n/dev# "},
	} {
		s.send(step[0])
		s.expect(step[1])
	}
	s.send("exit 3\r")
	if status := s.wait(); status != 3 {
		t.Errorf("status %d", status)
	}
}

// Ctrl-C ends what runs, or the line, and not the shell.
func TestInterrupt(t *testing.T) {
	s := start(t)
	s.expect("# ")
	s.send("sh -c 'echo be''gun; exec sleep 1000'; echo no''thing\r")
	s.expect("begun\r\n")
	s.send("\x03")
	s.expect("# ")
	s.send("echo $?; while true; do echo roun''d; done\r")
	s.expect("130\r\n")
	s.expect("round")
	s.send("\x03")
	s.expect("/# ")
	// A program that handles the signal ends as it likes.
	s.send("sh -c 'trap \"echo trap''ped; exit 5\" INT; echo re''ady; while :; do sleep 0.02; done'; echo $?\r")
	s.expect("ready")
	s.send("\x03")
	s.expect("trapped\r\n")
	s.expect("/# ")
	s.send("for i in 1\r")
	s.expect("> ")
	s.send("half a line\x03")
	s.expect("/# ")
	s.send("echo whole\r")
	s.expect("\r\nwhole\r\n/# ")
	if bytes.Contains(s.seen, []byte("nothing")) {
		t.Error("a stopped line went on")
	}
	s.send("\x04")
	if status := s.wait(); status != 0 {
		t.Errorf("status %d", status)
	}
}

func TestNoTerminal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if status, err := Run(r, w, w); status != 1 || err == nil {
		t.Errorf("%d, %v", status, err)
	}
}

func TestKeys(t *testing.T) {
	k := &keys{r: iotest.OneByteReader(strings.NewReader("ab\x03c"))}
	var got []byte
	b := make([]byte, 2) // less than a Ctrl-C becomes
	for {
		n, err := k.Read(b)
		got = append(got, b[:n]...)
		if err != nil {
			break
		}
	}
	if string(got) != "ab\x05\x15\rc" {
		t.Errorf("got %q", got)
	}
	if !k.takeStop() || k.takeStop() {
		t.Error("the stop is not told once")
	}
}

func TestComplete(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"bin/apple", "bin/apricot", "bin/banana", "data/one.txt", ".hidden"} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r, err := interp.New(interp.Dir(dir), interp.Env(expand.ListEnviron("PATH="+dir+"/bin")))
	if err != nil {
		t.Fatal(err)
	}
	r.Reset()
	s := &shell{runner: r}
	for line, want := range map[string]string{
		"a": "ap", "b": "banana ", "ap": "", "x": "", "": "",
		"cat d": "cat data/", "cat data/o": "cat data/one.txt ", "cat " + dir + "/da": "cat " + dir + "/data/",
		"cat x | b": "cat x | banana ", "cat .": "cat .hidden ", "data/": "data/one.txt ", "cat > d": "cat > data/",
	} {
		got, pos, ok := s.complete(line, len(line), '\t')
		if got != want || ok != (want != "") || ok && pos != len(want) {
			t.Errorf("%q: %q, %d, %v; want %q", line, got, pos, ok, want)
		}
	}
	if got, pos, ok := s.complete("b -x", 1, '\t'); got != "banana  -x" || pos != 7 || !ok {
		t.Errorf("within a line: %q, %d, %v", got, pos, ok)
	}
	if _, _, ok := s.complete("a", 1, 'a'); ok {
		t.Error("completes at any key")
	}
}
