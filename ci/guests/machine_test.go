// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	adapter "toebox/ci/rig"
	"toebox/images/control"
	"toebox/images/initramfs"
	"toebox/images/rig"
	"toebox/images/toolchain/toolchaintest"
	"toebox/images/vm"
	"toebox/vdev/device"
	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/edu"
	"toebox/vfio-user/sample"
)

const (
	patience = 2 * time.Minute // for a boot, without KVM and beside other tests

	probePackage = "toebox/ci/cmd/toebox-probe"
	probe        = "/bin/toebox-probe"
	tool         = "/bin/toebox-guest"
	guestPort    = 80 // where the tool serves

	blob = 256 << 10 // bytes of a page
)

// machine is a guest with the devices, which are this test's.
type machine struct {
	*vm.VM
	t       *testing.T
	dir     string
	adapter *device.Device
	edu     *edu.Device
	sample  *sample.Device
	in      string       // URL of the guest's server, from here
	out     string       // URL of a server here, from the guest
	served  atomic.Int64 // pages of that server
}

// serve offers a device at path until the test is over.
func serve(t *testing.T, path string, run func(context.Context, *net.UnixListener) error) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		l.Close()
	})
}

// prepare makes what a machine is started with, for a guest that has the probe. The
// directory is short enough for sockets.
func prepare(t *testing.T, network, iommu string) (o rig.Options, parts *rig.Parts, sockets string) {
	t.Helper()
	toolchaintest.QEMU(t)
	toolchaintest.Kernel(t)
	paths, err := rig.DefaultPaths()
	if err != nil {
		t.Fatal(err)
	}
	c := toolchaintest.Config(t)
	o = rig.Options{
		Paths: paths, QEMU: c.QEMU, Kernel: c.Kernel, Modules: c.Modules, Accel: os.Getenv("TOEBOX_ACCEL"), Net: network, IOMMU: iommu,
	}
	programs, err := initramfs.Programs(t.Context(), initramfs.Config{CacheDir: o.Cache, Source: o.Source}, probePackage)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(programs, filepath.Base(probe)))
	if err != nil {
		t.Fatal(err)
	}
	o.Files = []initramfs.File{{Path: probe[1:], Mode: 0o755, Data: b}}
	parts, err = rig.Prepare(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	sockets, err = os.MkdirTemp(o.Runtime, "tbx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	return o, parts, sockets
}

// boot starts a guest behind an IOMMU of that kind.
func boot(t *testing.T, iommu string) *machine {
	t.Helper()
	o, parts, sockets := prepare(t, device.ModeNAT, iommu)
	m := &machine{t: t, dir: t.TempDir()}
	mc := o.MachineConfig(parts, m.dir, sockets)
	mc.Reboot = true
	m.serveAdapter(mc.Devices[0])
	m.edu, m.sample = newCards(t)
	for i, s := range []*vfiouser.Server{m.edu.Server(), m.sample.Server()} {
		path := filepath.Join(sockets, fmt.Sprint("card", i))
		serve(t, path, s.Serve)
		mc.Args = append(mc.Args, "-device", deviceArg(6+i, path))
	}
	m.start(mc)
	m.up()
	return m
}

// start starts the machine.
func (m *machine) start(c vm.Config) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	var err error
	if m.VM, err = vm.Start(ctx, c, nil); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(m.Stop)
}

func (m *machine) serveAdapter(path string) {
	m.t.Helper()
	out, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	page := bytes.Repeat([]byte("0123456789abcdef"), blob/16)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n, err := w.Write(page); err == nil && n == len(page) {
			m.served.Add(1)
		}
	})}
	go s.Serve(out) //nolint:errcheck // ends with Close
	m.t.Cleanup(func() { s.Close() })
	in, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	m.in = "http://" + in.Addr().String()
	forward := device.Forward{Listener: in, Guest: netip.AddrPortFrom(netip.Addr{}, guestPort)}
	if m.adapter, err = device.New(device.Config{Firmware: adapter.Firmware, Net: device.Net{Mode: device.ModeNAT, Forwards: []device.Forward{forward}}, Seed: 1}); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := m.adapter.Close(); err != nil {
			m.t.Error(err)
		}
	})
	_, port, _ := strings.Cut(out.Addr().String(), ":")
	m.out = fmt.Sprintf("http://%v:%s/", m.adapter.NAT().Gateway(), port)
	serve(m.t, path, m.adapter.Serve)
}

// newCards makes the devices besides the adapter.
func newCards(t *testing.T) (*edu.Device, *sample.Device) {
	t.Helper()
	e, err := edu.New(edu.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	s, err := sample.New(sample.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return e, s
}

// deviceArg is the value of QEMU's -device for the device at a socket.
func deviceArg(slot int, path string) string {
	return fmt.Sprintf(`{"driver":"vfio-user-pci","addr":"%d.0","socket":{"type":"unix","path":%q}}`, slot, path)
}

// check fails the test with what there is to be known.
func (m *machine) check(what string, err error) {
	m.t.Helper()
	if err == nil {
		return
	}
	adapter, _ := json.Marshal(m.adapter.Stats())
	var driver, bad bytes.Buffer
	if m.VM != nil {
		ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second)
		defer cancel()
		control.Run(ctx, m.Control(), control.Request{Args: []string{tool, "stats"}}, control.Streams{Stdout: &driver, Stderr: &bad}) //nolint:errcheck // the guest may be gone
	}
	m.t.Fatalf("%s: %v\nadapter: %s\ndriver: %s%s\nQEMU says: %s\nthe console ends:\n%s", what, err, adapter, &driver, &bad, m.qemuLog(), m.ConsoleTail(20))
}

func (m *machine) qemuLog() string {
	b, err := os.ReadFile(filepath.Join(m.dir, "qemu.log"))
	if err != nil {
		m.t.Error(err)
	}
	return strings.TrimSpace(string(b))
}

// up waits until the guest serves over the adapter.
func (m *machine) up() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	_, err := m.Hello(ctx)
	m.check("boot", err)
	m.check("start", m.Ready(ctx, nil))
}

// exec runs a program in the guest to its end.
func (m *machine) exec(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	var out, bad bytes.Buffer
	res, err := control.Run(ctx, m.Control(), control.Request{Args: args}, control.Streams{Stdout: &out, Stderr: &bad})
	if err == nil && (res.Error != "" || res.Status != 0) {
		err = fmt.Errorf("%v: status %d %s: %s%s", args, res.Status, res.Error, &out, &bad)
	}
	return out.String(), err
}

// fetch gets blob bytes from the guest.
func (m *machine) fetch(ctx context.Context) error {
	cl := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/bytes/%d", m.in, blob), nil)
	if err != nil {
		return err
	}
	res, err := cl.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err == nil && (n != blob || res.StatusCode != http.StatusOK) {
		err = fmt.Errorf("%d bytes, %s", n, res.Status)
	}
	return err
}

// mapped says whether the adapter still reaches where the driver's first memory is:
// at 4 GiB, where a machine of 1 GiB has nothing by itself.
func (m *machine) mapped() bool {
	return m.adapter.Server().DMA().Backed(1<<32, 4096, vfiouser.ProtRead|vfiouser.ProtWrite)
}

// servers are the statistics of the devices' servers.
func (m *machine) servers() map[string]vfiouser.Stats {
	return map[string]vfiouser.Stats{"adapter": m.adapter.Server().Stats(), "edu": m.edu.Server().Stats(), "sample": m.sample.Server().Stats()}
}
