// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"toebox/images/rig"
	"toebox/images/toolchain"
	"toebox/images/vm"
)

const (
	statsPatience = 5 * time.Second
	maxStats      = 16 << 20
	statsURL      = "http://device/stats" // by statsClient
)

// Adapter are the flags of verbs about one adapter of the running machine.
type Adapter struct {
	Adapter int `env:"TOEBOX_ADAPTER" help:"Number of the adapter, counted from 0."`
}

// StatsCmd shows the running adapter's counters.
type StatsCmd struct {
	Adapter `embed:""`
}

// Run is called by kong.
func (c *StatsCmd) Run(a *app) error {
	r, err := rig.Running(a.paths)
	if err != nil {
		return err
	}
	if err := r.Has(c.Adapter.Adapter); err != nil {
		return err
	}
	client := statsClient(r, c.Adapter.Adapter)
	resp, err := client.Get(statsURL)
	if err != nil {
		return fmt.Errorf("stats: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("stats: the device answered %s", resp.Status)
	}
	if _, err := io.Copy(a.stdout, io.LimitReader(resp.Body, maxStats)); err != nil {
		return fmt.Errorf("stats: %w", err)
	}
	return nil
}

// statsClient is a client of the HTTP interface of an adapter's device.
func statsClient(r rig.Record, adapter int) *http.Client {
	return &http.Client{Timeout: statsPatience, Transport: &http.Transport{
		// Its server may be another process the next time.
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", r.StatsSocket(adapter))
		},
	}}
}

// GetCmd gets and builds everything.
type GetCmd struct{}

// Run is called by kong.
func (c *GetCmd) Run(a *app) error {
	ctx, cancel := a.interruptible()
	defer cancel()
	o := a.options()
	o.Net = "nat"
	p, err := rig.Prepare(ctx, o)
	if err != nil {
		return err
	}
	a.report.Step(fmt.Sprintf("qemu: %s, %s", p.Tools.QEMU.Version, p.Tools.QEMU.Origin))
	a.report.Step(fmt.Sprintf("kernel: %s, %s", p.Tools.Kernel.Release, p.Tools.Kernel.Origin))
	return nil
}

// ServeCmd runs the device for somebody else's QEMU.
type ServeCmd struct {
	Machine    `embed:""`
	SocketPath string `name:"socket-path" env:"TOEBOX_SOCKET_PATH" placeholder:"PATH" help:"Where QEMU finds the device; made up if not given."`
}

// Run is called by kong.
func (c *ServeCmd) Run(a *app) error {
	o := a.options()
	if err := c.apply(&o); err != nil {
		return err
	}
	switch {
	case len(c.Net) > 1:
		return &rig.UsageError{Text: "serve: one --net"}
	case o.Net == "none":
		return &rig.UsageError{Text: "serve --net none: nothing to serve"}
	}
	ctx, cancel := a.interruptible()
	defer cancel()
	d, err := rig.Serve(ctx, o, c.SocketPath)
	if err != nil {
		return err
	}
	defer d.Close()
	fmt.Fprintf(a.stdout, "-device '%s'\n", strings.ReplaceAll(vm.DeviceArg(d.Socket), "'", `'\''`))
	a.report.Step("device: QEMU's memory must be shared: -object memory-backend-memfd,id=ram,size=1G,share=on -machine memory-backend=ram")
	select {
	case <-ctx.Done():
		return nil
	case <-d.Done():
		return d.Err()
	}
}

// CleanCmd removes what toebox has stored.
type CleanCmd struct {
	Runs bool `help:"Run folders only."`
}

// Run is called by kong.
func (c *CleanCmd) Run(a *app) error {
	if rig.Busy(a.paths) {
		return fmt.Errorf("clean: a toebox is running: end it first")
	}
	dirs := []string{a.paths.State}
	if !c.Runs {
		dirs = append(dirs, a.paths.Cache)
	}
	for _, d := range dirs {
		size := treeSize(d)
		if size < 0 {
			continue
		}
		if err := os.RemoveAll(d); err != nil {
			return fmt.Errorf("clean: %w", err)
		}
		a.report.Step(fmt.Sprintf("removed %s (%.1f MB)", d, float64(size)/1e6))
	}
	return nil
}

// treeSize returns the bytes below dir, -1 if there is no such thing.
func treeSize(dir string) int64 {
	if _, err := os.Lstat(dir); err != nil {
		return -1
	}
	var n int64
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error { //nolint:errcheck // callback returns nil
		if err != nil {
			return nil
		}
		if st, err := d.Info(); err == nil && st.Mode().IsRegular() {
			n += st.Size()
		}
		return nil
	})
	return n
}

// EnvCmd shows settings.
type EnvCmd struct{}

// Run is called by kong, which hands over its context.
func (c *EnvCmd) Run(a *app, k *kong.Context) error {
	seen := map[string]bool{}
	show := func(f *kong.Flag) {
		if len(f.Envs) == 0 || seen[f.Envs[0]] {
			return
		}
		seen[f.Envs[0]] = true
		from := "default"
		for _, e := range f.Envs {
			if _, ok := os.LookupEnv(e); ok {
				from = e
				break
			}
		}
		value := fmt.Sprint(reflect.Indirect(f.Target).Interface())
		if from != "default" {
			value = os.Getenv(from)
		} else if f.HasDefault {
			value = f.Default
		}
		fmt.Fprintf(a.stdout, "%s=%s\t# %s\n", f.Envs[0], value, from)
	}
	for _, f := range k.Model.Flags {
		show(f)
	}
	for _, cmd := range k.Model.Children {
		for _, f := range cmd.Flags {
			show(f)
		}
	}
	for _, d := range [][2]string{{"cache", a.paths.Cache}, {"state", a.paths.State}, {"sockets", a.paths.Runtime}, {"source", a.paths.Source}} {
		fmt.Fprintf(a.stdout, "# %s: %s\n", d[0], d[1])
	}
	return nil
}

// VersionCmd shows versions.
type VersionCmd struct{}

// Run is called by kong.
func (c *VersionCmd) Run(a *app) error {
	version := "unknown"
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				version = s.Value
			}
		}
	}
	fmt.Fprintf(a.stdout, "toebox %s, %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	o := a.options()
	tc := o.Tools()
	tc.Offline = true
	if q, err := toolchain.GetQEMU(context.Background(), tc); err == nil {
		fmt.Fprintf(a.stdout, "qemu %s (%s)\n", q.Version, q.Origin)
	}
	if k, err := toolchain.GetKernel(context.Background(), tc); err == nil {
		fmt.Fprintf(a.stdout, "kernel %s (%s)\n", k.Release, k.Origin)
	}
	return nil
}

var _ toolchain.Progress = (*reporter)(nil)
