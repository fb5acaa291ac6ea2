// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/ci/netns"
	"toebox/ci/netns/netnstest"
	"toebox/vfio-user/keeper"
)

// TestCarryOverTap: the same with toebox-device, which hands its tap device on at
// SIGTERM, and the Linux kernel as the peer, which answers nothing with a reset, and is
// never reset.
func TestCarryOverTap(t *testing.T) {
	if !netnstest.Here(t) {
		return
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	n, err := netns.New()
	check(err)
	t.Cleanup(func() { check(n.Close()) })
	dir := folder(t)
	program := filepath.Join(dir, "toebox-device")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "toebox/vdev/cmd/toebox-device").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tap, err := n.Tap()
	check(err)
	defer tap.Close()
	for _, network := range []struct {
		name    string
		address netip.Addr
	}{
		{"IPv4", n.Gateway()},
		{"IPv6", n.Gateway6()},
	} {
		t.Run(network.name, func(t *testing.T) {
			if !network.address.IsValid() {
				t.Skip("the kernel has no IPv6: start it without ipv6.disable=1")
			}
			before := netnstest.Resets(t, n)
			l := &net.TCPListener{}
			check(n.Do(func() (err error) {
				l, err = net.ListenTCP("tcp", &net.TCPAddr{IP: network.address.AsSlice()})
				return err
			}))
			defer l.Close()
			l.SetDeadline(time.Now().Add(limit))
			served := make(chan error, 1)
			go func() { served <- echoKernel(l) }()
			carryOver(t, folder(t), l.Addr().String(), func(launch keeper.Launch) *exec.Cmd {
				cmd := exec.Command(program, "--fd=3", "--net=tap:fd=4,"+n.Options(), "--seed=1", fmt.Sprintf("--stop-time=%v", stopGrace))
				cmd.ExtraFiles = []*os.File{launch.Listener, tap}
				return cmd
			})
			if err := <-served; err != nil {
				t.Error(err)
			}
			if after := netnstest.Resets(t, n); after != before {
				t.Errorf("EstabResets and OutRsts of the kernel: %s, %s before", after, before)
			}
		})
	}
}

// echoKernel sends back what comes on one connection, and says whether the kernel
// counts as many bytes as there are.
func echoKernel(l *net.TCPListener) error {
	c, err := l.AcceptTCP()
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	n, err := io.Copy(c, struct{ io.Reader }{c})
	if err != nil || n != total {
		return fmt.Errorf("the kernel's end got %d bytes of %d: %w", n, total, err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	if e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); e != nil || err != nil {
		return fmt.Errorf("TCP_INFO: %w, %w", e, err)
	}
	// Its FIN counts as one.
	if got := info.Bytes_received; got != total && got != total+1 {
		return fmt.Errorf("the kernel counts %d bytes received of %d", got, total)
	}
	return nil
}
