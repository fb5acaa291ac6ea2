// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"toebox/vdev/abi"
)

// hostNetwork stands in for the driver with the host's own sockets.
type hostNetwork struct{ listening chan string }

func (hostNetwork) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

func (n hostNetwork) Listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, "127.0.0.1"+address)
	if err == nil && n.listening != nil {
		n.listening <- l.Addr().String()
	}
	return l, err
}

// startLocal serves the local protocol for one test and returns its socket.
func startLocal(t *testing.T, n network, in inspector) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := listenLocal(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := &localServer{net: n, in: in, driverStats: func() []string { return []string{"driver.host_copy_bytes 5"} }}
	go func() { done <- s.serve(ctx, l) }()
	t.Cleanup(func() {
		l.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return socket
}

func runTool(t *testing.T, socket string, in io.Reader, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), append([]string{"-socket", socket}, args...), stdio{in, &o, &e})
	return code, o.String(), e.String()
}

func TestFetch(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/x" {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, strings.Repeat("toebox ", 100_000))
	}))
	defer srv.Close()
	socket := startLocal(t, hostNetwork{}, &fakeInspector{})
	code, out, errs := runTool(t, socket, nil, "fetch", srv.URL+"/x")
	if code != 0 || len(out) != 700_000 {
		t.Fatalf("fetch = %d, %d bytes, %s", code, len(out), errs)
	}
	if code, _, errs := runTool(t, socket, nil, "fetch", srv.URL+"/y"); code != 1 || !strings.Contains(errs, "404") {
		t.Errorf("fetch of a missing page = %d %q, want 1 and 404", code, errs)
	}
	refused := refusedAddress(t)
	if code, _, errs := runTool(t, socket, nil, "fetch", "http://"+refused+"/"); code != 1 || !strings.Contains(errs, "refused") {
		t.Errorf("fetch from a closed port = %d %q, want 1 and refused", code, errs)
	}
	if code, _, _ := runTool(t, socket, nil, "fetch"); code != 2 {
		t.Errorf("fetch without URL = %d, want 2", code)
	}
	if code, _, errs := runTool(t, filepath.Join(t.TempDir(), "none"), nil, "fetch", srv.URL); code != 1 || !strings.Contains(errs, "toebox-guest serve") {
		t.Errorf("fetch without a driver = %d %q, want 1 and the cure", code, errs)
	}
}

func refusedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestFetchTimesOut(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer srv.Close()
	defer close(release)
	socket := startLocal(t, hostNetwork{}, &fakeInspector{})
	if code, _, errs := runTool(t, socket, nil, "fetch", "-timeout", "50ms", srv.URL); code != 124 {
		t.Errorf("fetch from a silent server = %d %q, want 124", code, errs)
	}
}

func TestDialPassesHalfClose(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // answers only after the end of the stream
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		c.Write(bytes.ToUpper(b))
	}()
	socket := startLocal(t, hostNetwork{}, &fakeInspector{})
	code, out, errs := runTool(t, socket, strings.NewReader("hello"), "dial", l.Addr().String())
	if code != 0 || out != "HELLO" {
		t.Errorf("dial = %d %q %s, want HELLO", code, out, errs)
	}
}

func TestListen(t *testing.T) {
	n := hostNetwork{listening: make(chan string, 1)}
	socket := startLocal(t, n, &fakeInspector{})
	got := make(chan string, 1)
	go func() {
		c, err := net.Dial("tcp", <-n.listening)
		if err != nil {
			got <- err.Error()
			return
		}
		defer c.Close()
		io.WriteString(c, "from outside")
		c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		got <- string(b)
	}()
	code, out, errs := runTool(t, socket, strings.NewReader("from inside"), "listen", ":0")
	if code != 0 || out != "from outside" {
		t.Errorf("listen = %d %q %s", code, out, errs)
	}
	if g := <-got; g != "from inside" {
		t.Errorf("the peer got %q", g)
	}
	if code, _, _ := runTool(t, socket, nil, "listen", "-timeout", "20ms", ":0"); code != 1 {
		t.Errorf("listen that nobody calls = %d, want 1", code)
	}
}

func TestHelp(t *testing.T) {
	if code, out, errs := runTool(t, "", nil, "help"); code != 0 || !strings.Contains(out, "fetch") || errs != "" {
		t.Errorf("help = %d, %q, %q", code, out, errs)
	}
	if code, out, errs := runTool(t, "", nil, "dance"); code != 2 || out != "" || !strings.Contains(errs, "fetch") {
		t.Errorf("dance = %d, %q, %q", code, out, errs)
	}
}

func TestStatsAndAttributes(t *testing.T) {
	in := &fakeInspector{
		counters: []uint64{9, 8},
		attrs: map[abi.Attribute][]byte{
			0x0100: {2, 0, 0, 0, 0, 1}, // MAC
			0x0106: {0xdc, 5, 0, 0, 0, 0, 0, 0},
			0x0101: {4, 24, 0, 0, 0, 0, 0, 0, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		},
	}
	socket := startLocal(t, hostNetwork{}, in)
	code, out, _ := runTool(t, socket, nil, "stats")
	if code != 0 || !strings.Contains(out, "adapter.requests") || !strings.Contains(out, "driver.host_copy_bytes 5") {
		t.Errorf("stats = %d\n%s", code, out)
	}
	_, out, _ = runTool(t, socket, nil, "attr")
	for _, want := range []string{"02:00:00:00:00:01", "1500", "10.0.2.15/24", "(NOT_SUPPORTED)"} {
		if !strings.Contains(out, want) {
			t.Errorf("attr lacks %q:\n%s", want, out)
		}
	}
	if code, _, errs := runTool(t, socket, nil, "attr", "mtu=9000"); code != 0 {
		t.Fatalf("attr mtu=9000 = %d %s", code, errs)
	}
	if _, out, _ = runTool(t, socket, nil, "attr", "mtu"); !strings.Contains(out, "9000") {
		t.Errorf("attr mtu = %q, want 9000", out)
	}
	for _, bad := range []string{"nonsense", "mtu=x", "=5", "address4=10.0.2.15"} {
		if code, _, _ := runTool(t, socket, nil, "attr", bad); code == 0 {
			t.Errorf("attr %s was taken", bad)
		}
	}
}

func TestHostileLocalClients(t *testing.T) {
	socket := startLocal(t, hostNetwork{}, &fakeInspector{})
	for name, send := range map[string]string{
		"nothing":   "",
		"no line":   `{"op":"stats"`,
		"no JSON":   "stats\n",
		"unknown":   `{"op":"erase"}` + "\n",
		"very long": strings.Repeat("x", maxLine+1) + "\n",
	} {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(c, send) // the server may hang up on the long one first
		c.(*net.UnixConn).CloseWrite()
		b, err := io.ReadAll(c)
		if err == nil && len(b) > 0 && !bytes.Contains(b, []byte(`"error"`)) {
			t.Errorf("%s: answered %q", name, b)
		}
		c.Close()
	}
	if code, _, errs := runTool(t, socket, nil, "stats"); code != 0 {
		t.Errorf("stats afterwards = %d %s", code, errs)
	}
}
