// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketpair returns two connected unix sockets.
func socketpair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// pair connects a host whose requests h serves on the guest.
func pair(t testing.TB, h Handler) (host, guest *Session) {
	t.Helper()
	a, b := socketpair(t)
	host = New(a, Config{Role: Host})
	guest = New(b, Config{Role: Guest, Info: map[string]string{"kernel": "6.1"}, Handler: h})
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

// testContext bounds a test's waits.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func env() []string { return []string{"PATH=/usr/bin:/bin", "A=1"} }

func execHandler(ctx context.Context, st *Stream) Result { return Exec(ctx, st, env()) }

func TestHello(t *testing.T) {
	host, _ := pair(t, nil)
	h, err := host.Hello(testContext(t))
	if err != nil || h.Info["kernel"] != "6.1" {
		t.Errorf("hello = %+v, %v", h, err)
	}
}

// A side may ask at once: its request must not overtake its hello.
func TestOpenAtOnce(t *testing.T) {
	for range 200 {
		host, guest := pair(t, func(context.Context, *Stream) Result { return Result{Status: 5} })
		st, err := host.Open(testContext(t), Request{})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := st.Result(testContext(t)); err != nil || r.Status != 5 {
			t.Fatalf("result = %+v, %v", r, err)
		}
		host.Close()
		guest.Close()
	}
}

func TestExec(t *testing.T) {
	host, _ := pair(t, execHandler)
	for _, test := range []struct {
		name        string
		r           Request
		in          string
		out, errOut string
		status      int
		why         string
	}{
		{name: "streams", r: Request{Args: []string{"sh", "-c", "cat; echo bad >&2; exit 7"}}, in: "good\n", out: "good\n", errOut: "bad\n", status: 7},
		{name: "environment", r: Request{Args: []string{"sh", "-c", "echo $A $B"}, Env: []string{"B=2"}}, out: "1 2\n"},
		{name: "directory", r: Request{Args: []string{"pwd"}, Dir: "/"}, out: "/\n"},
		{name: "signal", r: Request{Args: []string{"sh", "-c", "kill -9 $$"}}, status: 137},
		{name: "not found", r: Request{Args: []string{"no-such-program"}}, status: 127, why: "not exist"},
		{name: "not executable", r: Request{Args: []string{"/etc/passwd"}}, status: 126, why: "permission denied"},
		{name: "a directory", r: Request{Args: []string{"/etc"}}, status: 126, why: "permission denied"},
		{name: "bad directory", r: Request{Args: []string{"pwd"}, Dir: "/no/such"}, status: 127, why: "no such file"},
		{name: "no command", r: Request{}, status: 127, why: "no command"},
		{name: "input unread", r: Request{Args: []string{"true"}}, in: strings.Repeat("x", 1<<20)},
		{name: "terminal", r: Request{Args: []string{"sh", "-c", "tty >/dev/null && stty size; exit 3"}, TTY: true, Rows: 33, Cols: 77}, out: "33 77\r\n", status: 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			r, err := Run(testContext(t), host, test.r, Streams{Stdin: strings.NewReader(test.in), Stdout: &out, Stderr: &errOut})
			if err != nil {
				t.Fatal(err)
			}
			if r.Status != test.status || !strings.Contains(r.Error, test.why) {
				t.Errorf("result = %+v, want status %d (%s)", r, test.status, test.why)
			}
			if out.String() != test.out || errOut.String() != test.errOut {
				t.Errorf("out %q, err %q; want %q, %q", out.String(), errOut.String(), test.out, test.errOut)
			}
		})
	}
}

// Both ways at once, through a relay, with more than every buffer on the way holds.
func TestBulkThroughRelay(t *testing.T) {
	host, _ := pair(t, execHandler)
	client, _ := pair(t, func(ctx context.Context, st *Stream) Result { return Relay(ctx, st, host) })
	data := make([]byte, 8<<20)
	rng := rand.NewChaCha8([32]byte{7})
	rng.Read(data)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			sum := sha256.New()
			r, err := Run(testContext(t), client, Request{Args: []string{"cat"}}, Streams{Stdin: bytes.NewReader(data), Stdout: sum})
			if err != nil || r.Status != 0 {
				t.Errorf("result = %+v, %v", r, err)
			}
			if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
				t.Error("what came back is not what was sent")
			}
		})
	}
	wg.Wait()
}

// A command whose output nobody reads must not hold up another.
func TestSlowReader(t *testing.T) {
	host, _ := pair(t, execHandler)
	ctx, cancel := context.WithCancel(testContext(t))
	stuck, unstick := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := Run(ctx, host, Request{Args: []string{"sh", "-c", "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyy; done"}}, Streams{Stdout: unstick})
		ended <- err
	}()
	one := make([]byte, 1)
	if _, err := stuck.Read(one); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if r, err := Run(testContext(t), host, Request{Args: []string{"true"}}, Streams{}); err != nil || r.Status != 0 {
			t.Fatalf("result = %+v, %v", r, err)
		}
	}
	cancel()
	stuck.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
}

func TestMessagesReachTheCommand(t *testing.T) {
	host, _ := pair(t, execHandler)
	messages := make(chan Message, 2)
	out := &notifying{want: "ready", seen: func() {
		messages <- Message{Signal: "nonsense"}
		messages <- Message{Signal: "TERM"}
	}}
	r, err := Run(testContext(t), host, Request{Args: []string{"sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done"}},
		Streams{Stdout: out, Messages: messages})
	if err != nil || r.Status != 9 {
		t.Errorf("result = %+v, %v", r, err)
	}
}

type notifying struct {
	want string
	seen func()
}

func (n *notifying) Write(p []byte) (int, error) {
	if strings.Contains(string(p), n.want) {
		n.seen()
	}
	return len(p), nil
}

func TestCall(t *testing.T) {
	host, guest := pair(t, Mux{
		"double": func(_ context.Context, st *Stream) Result {
			var n int
			if err := json.Unmarshal(st.Request().Body, &n); err != nil {
				return Answer(nil, err)
			}
			return Answer(2*n, nil)
		},
	}.Serve)
	var n int
	if err := Call(testContext(t), host, "double", 21, &n); err != nil || n != 42 {
		t.Errorf("double = %d, %v", n, err)
	}
	if err := Call(testContext(t), host, "double", "x", &n); err == nil {
		t.Error("a bad argument passes")
	}
	if err := Call(testContext(t), host, "treble", 1, &n); err == nil || !strings.Contains(err.Error(), "treble") {
		t.Errorf("err = %v", err)
	}
	// The other way: a host that takes no requests says so.
	if err := Call(testContext(t), guest, "double", 1, &n); err == nil {
		t.Error("a side without a handler answered")
	}
}

func TestCloseUnblocks(t *testing.T) {
	block := make(chan struct{})
	host, guest := pair(t, func(ctx context.Context, st *Stream) Result {
		close(block)
		<-ctx.Done()
		return Result{}
	})
	st, err := host.Open(testContext(t), Request{Kind: "x"})
	if err != nil {
		t.Fatal(err)
	}
	<-block
	guest.Close()
	if _, err := st.Result(testContext(t)); err == nil {
		t.Error("no error from a dead session")
	}
	if _, err := io.ReadAll(st.Reader(1)); err == nil {
		t.Error("a dead session's channel ends like a whole one")
	}
	if _, err := host.Open(testContext(t), Request{}); err == nil {
		t.Error("a stream opened on a dead session")
	}
	host.Close()
	host.Close()
}

func TestTooManyStreams(t *testing.T) {
	host, _ := pair(t, func(ctx context.Context, st *Stream) Result { <-ctx.Done(); return Result{} })
	for i := range 256 {
		if _, err := host.Open(testContext(t), Request{}); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	if _, err := host.Open(testContext(t), Request{}); err == nil {
		t.Error("257 streams are open")
	}
	if host.Err() != nil {
		t.Error(host.Err())
	}
}

// Nobody may be at the host's end of the guest's port, or somebody who leaves.
func TestGuestWaitsForHost(t *testing.T) {
	a, b := net.Pipe() // a write ends when it is read
	defer a.Close()
	g := New(b, Config{Role: Guest})
	defer g.Close()
	a.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("before the host's hello: %d bytes, %v", n, err)
	}
	a.SetReadDeadline(time.Time{})
	h := New(a, Config{Role: Host})
	defer h.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, s := range map[string]*Session{"host": h, "guest": g} {
		if _, err := s.Hello(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
