// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"toebox/ci/netns"
	"toebox/ci/netns/netnstest"
	"toebox/images/toolchain/toolchaintest"
	"toebox/vdev/port"
)

// asCommand in the environment has the test program be the command.
const asCommand = "TOEBOX_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(m.Run())
}

// boot bounds the start of a machine, and what it is asked to do.
const boot = 3 * time.Minute

// TestRunTap: a machine behind a tap device. The kernel of the host, in a network
// namespace, fetches from the guest, and the guest from it; nothing is left behind.
func TestRunTap(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine, some seconds: run without -short")
	}
	toolchaintest.QEMU(t)
	toolchaintest.Kernel(t)
	if !netnstest.Here(t) {
		return
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), boot)
	defer cancel()
	n, err := netns.New()
	check(err)
	t.Cleanup(func() { check(n.Close()) })
	tap, err := n.Release()
	check(err)
	dir, err := os.MkdirTemp("", "tbx") // short enough for sockets
	check(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	sockets := filepath.Join(dir, "r")
	check(os.Mkdir(sockets, 0o700))
	said := newTold()
	command := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
		cmd.Env = append(os.Environ(), asCommand+"=1", "XDG_STATE_HOME="+filepath.Join(dir, "s"), "XDG_RUNTIME_DIR="+sockets)
		cmd.Stderr = said
		return cmd
	}

	const page = "hello from the host's kernel\n"
	host := make(map[netip.Addr]string)
	for _, a := range []netip.Addr{n.Gateway(), n.Gateway6()} {
		if !a.IsValid() {
			continue
		}
		var l net.Listener
		check(n.Do(func() (err error) {
			l, err = net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
			return err
		}))
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) })}
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
		host[a] = l.Addr().String()
	}

	run := command("run", "--net", fmt.Sprintf("tap:if=%s,%s", tap, n.Options()))
	check(n.Do(run.Start))
	ended := make(chan error, 1)
	go func() { ended <- run.Wait() }()

	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = n.Do(func() error {
				c, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return c, err
		},
	}}
	get := func(a netip.Addr) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+netip.AddrPortFrom(a, 80).String()+"/", nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err == nil && (res.StatusCode != http.StatusOK || !bytes.Contains(b, []byte("toebox"))) {
			err = fmt.Errorf("%s: %.200s", res.Status, b)
		}
		return err
	}
	// The kernel asks for the guest's MAC address until there is one.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for err = get(n.Adapter()); err != nil; err = get(n.Adapter()) {
		select {
		case <-tick.C:
		case e := <-ended:
			t.Fatalf("the run ended: %v\n%s", e, said)
		case <-ctx.Done():
			t.Fatalf("%v\n%s", err, said)
		}
	}
	if len(host) > 1 {
		if err := get(n.Adapter6()); err != nil {
			t.Errorf("over IPv6: %v", err)
		}
	}
	for _, address := range host {
		b, err := command("exec", "--", "toebox-guest", "fetch", "http://"+address+"/").Output()
		if err != nil || string(b) != page {
			t.Errorf("the guest got %q from %s, %v\n%s", b, address, err, said)
		}
	}

	check(run.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the end of the run: %v\n%s", err, said)
		}
	case <-ctx.Done():
		t.Fatalf("the run does not end\n%s", said)
	}
	// Nobody has the device.
	check(n.Do(func() error {
		f, err := port.OpenTap(tap)
		if err == nil {
			err = f.Close()
		}
		return err
	}))
	var left []string
	check(filepath.WalkDir(sockets, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, path)
		}
		return err
	}))
	if len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	if _, err := command("exec", "--", "true").Output(); err == nil {
		t.Error("a machine is still there")
	} else if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 125 {
		t.Errorf("a command afterwards: %v", err)
	}
}
