// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// shell has the server be a shell script.
func shell(script string) func(Launch) *exec.Cmd {
	return func(Launch) *exec.Cmd { return exec.Command("sh", "-c", script) }
}

// TestEnvironment: a server learns its generation and its socket, and its last
// words are kept.
func TestEnvironment(t *testing.T) {
	r := start(t, Config{
		Command: shell("echo $KEEPER_GENERATION $TOEBOX_GENERATION ${VFIO_USER_SOCKET##*/} >&2; exit 3"), Generation: 41,
		BackOff: time.Millisecond, MaxBackOff: time.Millisecond,
	})
	for n := uint32(41); n < 44; n++ {
		e := r.wait("an end", func(e Event) bool { return e.Kind == EventExited && e.Generation == n })
		var exit *exec.ExitError
		if want := fmt.Sprintf("%d %d s\n", n, n); string(e.Trace) != want || !errors.As(e.Err, &exit) || exit.ExitCode() != 3 {
			t.Errorf("%+v says %q, want %q", e, e.Trace, want)
		}
	}
}

// TestBackOff: a server that ends at once is started ever more seldom, but one
// that is replaced is not waited for.
func TestBackOff(t *testing.T) {
	var starts []time.Time
	r := start(t, Config{
		Command: shell("exit 1"), BackOff: 20 * time.Millisecond, MaxBackOff: time.Hour, Uptime: time.Hour,
		Event: func(e Event) {
			if e.Kind == EventStarted {
				starts = append(starts, time.Now())
			}
		},
	})
	r.wait("five starts", func(e Event) bool { return e.Kind == EventStarted && e.Generation == 5 })
	for i := 1; i < 5; i++ {
		if gap, least := starts[i].Sub(starts[i-1]), 20*time.Millisecond<<(i-1); gap < least {
			t.Errorf("start %d after %v, not %v", i+1, gap, least)
		}
	}
	e := r.wait("the fifth pause", func(e Event) bool { return e.Kind == EventPaused && e.Generation == 5 })
	if want := 20 * time.Millisecond << 4; e.Took != want {
		t.Errorf("a pause of %v, not %v", e.Took, want)
	}
	if err := r.k.Replace(t.Context()); err != nil {
		t.Error(err)
	}
	r.wait("a sixth start", func(e Event) bool { return e.Kind == EventStarted && e.Generation == 6 })
}

// TestNoStart: a command that cannot be run is an event, and Replace says so.
func TestNoStart(t *testing.T) {
	r := start(t, Config{Command: func(Launch) *exec.Cmd { return exec.Command("/no/such/server") }, BackOff: time.Hour, MaxBackOff: time.Hour})
	e := r.wait("a failure", func(e Event) bool { return e.Kind == EventFailed })
	if !errors.Is(e.Err, os.ErrNotExist) {
		t.Error(e.Err)
	}
	if err := r.k.Replace(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestNoServer: QEMU is told in time that there is nothing to attach.
func TestNoServer(t *testing.T) {
	r := start(t, Config{Command: shell("sleep 100"), Patience: 100 * time.Millisecond})
	// By an answer, which is not the client's own patience.
	if _, err := vfiouser.Dial(t.Context(), r.path, vfiouser.ClientConfig{Timeout: patience}); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Error(err)
	}
}

// TestWrapper: with a server that is the child of what was started, both are gone
// before the next one is started, and the keeper's folders with them.
func TestWrapper(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	r := start(t, Config{Command: command(t, "child"), Patience: patience, StartTimeout: patience, BackOff: time.Millisecond, MaxBackOff: time.Millisecond})
	c := r.dial(vfiouser.ClientConfig{})
	first := r.ready(1)
	if err := c.WriteRegion(7, 4, []byte{6, 0}); err != nil {
		t.Fatal(err)
	}
	alive := groupMembers(t, first.PID)
	if len(alive) != 2 {
		t.Errorf("%d processes in the group", len(alive))
	}
	// Only the wrapper dies; its child holds guest memory.
	syscall.Kill(first.PID, syscall.SIGKILL)
	r.wait("the next start", func(e Event) bool { return e.Kind == EventStarted && e.Generation == 2 })
	if alive := groupMembers(t, first.PID); len(alive) != 0 {
		t.Errorf("%v live on", alive)
	}
	r.ready(2)
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), folderPrefix+"*")); len(left) != 1 {
		t.Errorf("folders %v", left)
	}
}

// groupMembers returns the processes of a group that run.
func groupMembers(t *testing.T, pgid int) (pids []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if f[2] == strconv.Itoa(pgid) && f[0] != "Z" && f[0] != "X" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestStubborn: a server that does not end when asked to is killed.
func TestStubborn(t *testing.T) {
	heard := make(said, 16)
	r := start(t, Config{
		Command: shell("trap '' TERM; echo ready >&2; while :; do sleep 0.05; done"), StopGrace: 20 * time.Millisecond, Stderr: heard,
	})
	<-heard
	if err := r.k.Replace(t.Context()); err != nil {
		t.Error(err)
	}
	e := r.wait("the end", func(e Event) bool { return e.Kind == EventExited })
	var exit *exec.ExitError
	if !errors.As(e.Err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL || !e.Expected {
		t.Errorf("%+v", e)
	}
}

// said is what is written to it.
type said chan string

func (w said) Write(p []byte) (int, error) {
	select {
	case w <- string(p):
	default:
	}
	return len(p), nil
}

// TestStacks: the stacks of a Go server that hangs are in the event, and its
// client is answered without it.
func TestStacks(t *testing.T) {
	r := start(t, Config{Command: command(t, "hang"), Patience: patience, StopGrace: patience, StartTimeout: patience, BackOff: time.Hour, MaxBackOff: time.Hour})
	c := r.dial(vfiouser.ClientConfig{})
	r.ready(1)
	b := make([]byte, 2)
	read := make(chan error, 1)
	go func() { read <- c.ReadRegion(0, 0, b) }()
	eventually(t, "the read to be under way", func() bool {
		s := r.session()
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.live.pending) == 1
	})
	r.outOfPatience() // once: it does not wait for the end of the server
	if err := <-read; err != nil || b[0] != 0xff || b[1] != 0xff {
		t.Errorf("% x, %v", b, err)
	}
	e := r.wait("the end", func(e Event) bool { return e.Kind == EventExited })
	if !strings.Contains(string(e.Trace), "SIGQUIT") || !strings.Contains(string(e.Trace), "keeper.serveAs") {
		t.Errorf("%+v: %s", e, e.Trace)
	}
}

// TestConfig refuses what makes no sense.
func TestConfig(t *testing.T) {
	c := shell("true")
	for i, cfg := range []Config{
		{}, {Command: c, Start: newFakes(t).Start}, {Command: c, Patience: -1}, {Command: c, SendTimeout: -1}, {Command: c, BackOff: 2, MaxBackOff: 1},
		{Command: c, MaxFDs: 1000}, {Command: c, MaxTransfer: 1 << 30}, {Command: c, StopGrace: -1}, {Command: c, QuietTime: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%d: no error", i)
		}
	}
	k, err := New(Config{Command: c})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Replace(t.Context()); err == nil {
		t.Error("Replace without Serve")
	}
}

// BenchmarkRead is a register read, through a keeper and without one.
func BenchmarkRead(b *testing.B) {
	f := newFakes(b)
	r := start(b, f.config())
	f.device(plain())
	dev, cfg := plain()
	_, direct := vfiousertest.Start(b, dev, cfg, vfiouser.ClientConfig{})
	for _, way := range []struct {
		name string
		c    *vfiouser.Client
	}{{"keeper", r.dial(vfiouser.ClientConfig{})}, {"direct", direct}} {
		b.Run(way.name, func(b *testing.B) {
			p := make([]byte, 4)
			b.ReportAllocs()
			for b.Loop() {
				if err := way.c.ReadRegion(0, 0, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
