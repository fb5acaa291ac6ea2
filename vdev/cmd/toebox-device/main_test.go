// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
)

// asCommand in the environment makes the test binary be the command.
const asCommand = "TOEBOX_DEVICE_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Exit(run(os.Args[1:], os.Stderr))
	}
	os.Exit(m.Run())
}

const patience = 60 * time.Second

// command is a running toebox-device.
type command struct {
	*exec.Cmd
	done   chan struct{} // closed at its end
	stdout bytes.Buffer

	mu     sync.Mutex
	stderr strings.Builder
}

// start runs the command with files as descriptors 3 and up, and waits until it
// is up if up is true.
func start(t *testing.T, up bool, files []*os.File, args ...string) *command {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &command{Cmd: exec.Command(exe, args...), done: make(chan struct{})}
	c.Env = append(os.Environ(), asCommand+"=1")
	c.ExtraFiles = files
	c.Stdout = &c.stdout
	pipe, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	go func() {
		defer close(c.done)
		lines := bufio.NewScanner(pipe)
		first := sync.OnceFunc(func() { close(ready) })
		for lines.Scan() {
			c.mu.Lock()
			c.stderr.WriteString(lines.Text() + "\n")
			c.mu.Unlock()
			if strings.Contains(lines.Text(), "adapter is up") {
				first()
			}
		}
		_ = c.Wait() // the status is in ProcessState
		first()
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-c.done
	})
	if up {
		select {
		case <-ready:
		case <-time.After(patience):
			t.Fatal("not up in time")
		}
	}
	return c
}

// status waits for the end.
func (c *command) status(t *testing.T) (code int, stderr string) {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(patience):
		t.Fatalf("no end in time\n%s", c.said())
	}
	if c.stdout.Len() > 0 {
		t.Errorf("stdout has %q", c.stdout.String())
	}
	return c.ProcessState.ExitCode(), c.said()
}

func (c *command) said() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stderr.String()
}

// socketDir is short enough for socket paths.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "td")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// fetch gets a page of the control socket.
func fetch(t *testing.T, path, page string) (int, []byte) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
	r, err := client.Get("http://device" + page)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, b
}

// readID connects as a vfio-user client and reads the ID register.
func readID(t *testing.T, path string) {
	t.Helper()
	c, err := vfiouser.Dial(t.Context(), path, vfiouser.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var b [4]byte
	if err := c.WriteRegion(7, 4, []byte{2, 0}); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadRegion(0, 0, b[:]); err != nil || string(b[:]) != "TEOB" {
		t.Fatalf("ID %q, %v", b, err)
	}
}

// TestLife serves a client and statistics, and ends as told, leaving no socket.
func TestLife(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := socketDir(t)
			socket, control, pcap, nvm := filepath.Join(dir, "s"), filepath.Join(dir, "c"), filepath.Join(dir, "p"), filepath.Join(dir, "n")
			c := start(t, true, nil, "--socket-path="+socket, "--control-path="+control, "--pcap="+pcap, "--nvm="+nvm,
				"--net=nat:fwd=tcp:127.0.0.1:0-:80", "--seed=9", "--generation=4", "-v", "--pprof")
			readID(t, socket)
			code, body := fetch(t, control, "/stats")
			var stats struct {
				Generation int
				Counters   map[string]uint64
				VFIOUser   struct{ Connections int } `json:"vfio_user"`
				NAT        *struct{}
			}
			if err := json.Unmarshal(body, &stats); err != nil || code != 200 || stats.Generation != 4 || stats.NAT == nil ||
				stats.VFIOUser.Connections != 1 || stats.Counters["mmio_reads"] != 1 {
				t.Errorf("%d %v %+v\n%s", code, err, stats, body)
			}
			if code, _ := fetch(t, control, "/debug/pprof/cmdline"); code != 200 {
				t.Errorf("pprof: %d", code)
			}
			if code, _ := fetch(t, control, "/"); code != 404 {
				t.Errorf("/: %d", code)
			}
			if err := c.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if code, stderr := c.status(t); code != 0 {
				t.Errorf("status %d\n%s", code, stderr)
			}
			for _, path := range []string{socket, control} {
				if _, err := os.Lstat(path); err == nil {
					t.Errorf("%s is left", path)
				}
			}
			if fi, err := os.Stat(pcap); err != nil || fi.Size() == 0 {
				t.Errorf("capture: %v", err)
			}
		})
	}
}

// TestParent: the end of the parent's pipe is the end.
func TestParent(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(socketDir(t), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c := start(t, true, []*os.File{r, file}, "--fd=4", "--parent-fd=3")
	readID(t, l.Addr().String())
	w.Close()
	if code, stderr := c.status(t); code != 0 {
		t.Errorf("status %d\n%s", code, stderr)
	}
	if _, err := os.Lstat(l.Addr().String()); err != nil {
		t.Error("the parent's socket is gone")
	}
}

// TestFaultNet reads and changes the rules of the wire over the control socket.
func TestFaultNet(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		put  string // empty: none
		code int
		want string // in the answer
	}{
		{"none at first", []string{"--net=nat"}, "", 200, `"rules": "none"`},
		{"from the start", []string{"--net=nat", "--impair=from.loss=1%,seed=4"}, "", 200, `"rules": "from.loss=0.01,seed=4"`},
		{"changed", []string{"--net=nat", "--impair=loss=1%"}, "to.delay=5ms\n", 200, `"rules": "to.delay=5ms"`},
		{"made good", []string{"--net=nat", "--impair=loss=1%"}, "none", 200, `"rules": "none"`},
		{"nonsense", []string{"--net=nat"}, "loss=lots", 400, "invalid syntax"},
		{"too long", []string{"--net=nat"}, strings.Repeat("seed=1,", 1000), 400, "too large"},
		{"no network", nil, "", 200, "null"},
		{"no network to harm", nil, "loss=1%", 400, "no network"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := socketDir(t)
			p := start(t, true, nil, append(c.args, "--socket-path="+filepath.Join(dir, "s"), "--control-path="+filepath.Join(dir, "c"))...)
			method := http.MethodGet
			if c.put != "" {
				method = http.MethodPut
			}
			req, err := http.NewRequestWithContext(t.Context(), method, "http://device/fault/net", strings.NewReader(c.put))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := faultClient(dir).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != c.code || !strings.Contains(string(body), c.want) {
				t.Errorf("%s, %v: %s, want %d and %s", resp.Status, err, body, c.code, c.want)
			}
			if err := p.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			p.status(t)
		})
	}
	c := start(t, false, nil, "--socket-path="+filepath.Join(socketDir(t), "s"), "--net=nat", "--impair=loss=x")
	if code, stderr := c.status(t); code != 125 || !strings.Contains(stderr, "--impair") {
		t.Errorf("status %d\n%s", code, stderr)
	}
}

// faultClient talks to the control socket in dir.
func faultClient(dir string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(dir, "c"))
		},
	}}
}

// TestFaultsLast: how bad the wire was made holds for the processes that come
// after, whatever they are started with.
func TestFaultsLast(t *testing.T) {
	dir := socketDir(t)
	faults := filepath.Join(dir, "f")
	args := []string{"--net=nat", "--impair=loss=1%", "--faults=" + faults, "--socket-path=" + filepath.Join(dir, "s"), "--control-path=" + filepath.Join(dir, "c")}
	for _, c := range []struct{ begins, put, kept string }{
		{"to.loss=0.01,from.loss=0.01", "", ""},
		{"to.loss=0.01,from.loss=0.01", "to.delay=5ms", "to.delay=5ms"},
		{"to.delay=5ms", "none", "none"},
		{"none", "nonsense", "none"},
		{"none", "", "none"},
	} {
		p := start(t, true, nil, args...)
		ask := func(method, body string) string {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), method, "http://device/fault/net", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := faultClient(dir).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		if got := ask(http.MethodGet, ""); !strings.Contains(got, `"rules": "`+c.begins+`"`) {
			t.Errorf("the wire begins with %s, want %s", got, c.begins)
		}
		if c.put != "" {
			ask(http.MethodPut, c.put)
		}
		if b, err := os.ReadFile(faults); string(b) != c.kept || (err != nil) != (c.kept == "") {
			t.Errorf("kept are %q (%v), want %q", b, err, c.kept)
		}
		if err := p.Process.Kill(); err != nil { // it has no time to write anything
			t.Fatal(err)
		}
		p.status(t)
		for _, name := range []string{"s", "c"} {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(faults, []byte("loss=lots"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, false, nil, args...)
	if code, stderr := p.status(t); code != 125 || !strings.Contains(stderr, "--faults") {
		t.Errorf("status %d\n%s", code, stderr)
	}
}

// TestOneAfterAnother: sockets and capture that a parent keeps go from process to
// process, whatever end one comes to.
func TestOneAfterAnother(t *testing.T) {
	dir := socketDir(t)
	var files []*os.File
	for _, name := range []string{"s", "c"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		file, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		files = append(files, file)
	}
	pcap, err := os.Create(filepath.Join(dir, "p"))
	if err != nil {
		t.Fatal(err)
	}
	defer pcap.Close()
	files = append(files, pcap)
	section := []byte("\x0a\x0d\x0d\x0a")
	for n := 1; n <= 3; n++ {
		t.Setenv("TOEBOX_GENERATION", fmt.Sprint(n))
		c := start(t, true, files, "--fd=3", "--control-fd=4", "--pcap-fd=5", "--net=nat")
		readID(t, filepath.Join(dir, "s"))
		code, body := fetch(t, filepath.Join(dir, "c"), "/stats")
		var stats struct{ Generation int }
		if err := json.Unmarshal(body, &stats); err != nil || code != 200 || stats.Generation != n {
			t.Errorf("%d, %v: %+v, want generation %d", code, err, stats, n)
		}
		for deadline := time.Now().Add(patience); ; <-time.After(time.Millisecond) {
			b, err := os.ReadFile(pcap.Name())
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("process %d: %d sections, %v", n, bytes.Count(b, section), err)
			}
			if bytes.Count(b, section) == n {
				break
			}
		}
		if n == 2 {
			_ = c.Process.Kill()
		} else {
			_ = c.Process.Signal(syscall.SIGTERM)
		}
		c.status(t)
		// What a death in the middle of a block leaves.
		if _, err := pcap.WriteString("\x06\x00\x00\x00\x40\x00\x00\x00rest"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestForward: the listener of a forward is inherited, and ends with the process.
func TestForward(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	socket := filepath.Join(socketDir(t), "s")
	start(t, true, []*os.File{file}, "--socket-path="+socket, "--net=nat:fwd-fd=3-:80")
	// Nobody listens in the adapter: the client is reset.
	conn, err := net.Dial("tcp", l.Addr().String())
	if err == nil {
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 1))
	}
	// The reset may come before Dial has looked whether it is connected.
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
}

// TestSockets: a socket that is left over is replaced, one in use is not.
func TestSockets(t *testing.T) {
	dir := socketDir(t)
	left := filepath.Join(dir, "left")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	start(t, true, nil, "--socket-path="+left)
	readID(t, left)
	if code, stderr := start(t, false, nil, "--socket-path="+left).status(t); code != 125 || !strings.Contains(stderr, "address already in use") {
		t.Errorf("a socket in use: status %d\n%s", code, stderr)
	}
	readID(t, left)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, stderr := start(t, false, nil, "--socket-path="+file).status(t); code != 125 {
		t.Errorf("a file: status %d\n%s", code, stderr)
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("the file was touched")
	}
}

// TestWrong: each mistake has its status and one line that names it.
func TestWrong(t *testing.T) {
	dir := socketDir(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	socket := "--socket-path=" + filepath.Join(dir, "s")
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{2, "--socket-path", nil},
		{2, "--bogus", []string{socket, "--bogus"}},
		{2, "--seed", []string{socket, "--seed=x"}},
		{2, "can't be used together", []string{socket, "--fd=3"}},
		{125, "--net", []string{socket, "--net=tap"}},
		{125, tcp.Addr().String(), []string{socket, fmt.Sprintf("--net=nat:fwd=tcp:%s-:80", tcp.Addr())}},
		{125, "--pcap", []string{socket, "--pcap=" + dir}},
		{125, "non-volatile", []string{socket, "--nvm=" + dir}},
		{125, "--pcap-fd", []string{socket, "--pcap-fd=77"}},
		{125, "--control-fd", []string{socket, "--control-fd=3"}},
		{2, "can't be used together", []string{socket, "--pcap=p", "--pcap-fd=3"}},
		{125, "--parent-fd", []string{socket, "--parent-fd=77"}},
		{125, "--fd", []string{"--fd=77"}},
		{125, "--fd", []string{"--fd=3"}},
		{125, "s/s", []string{"--socket-path=" + filepath.Join(dir, "s/s")}},
		{125, "c/c", []string{socket, "--control-path=" + filepath.Join(dir, "c/c")}},
	} {
		code, stderr := start(t, false, []*os.File{pipe}, c.args...).status(t)
		if code != c.code || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: status %d, %q", c.args, code, stderr)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}
