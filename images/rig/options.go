// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"toebox/images/control"
	"toebox/images/initramfs"
	"toebox/images/toolchain"
)

const modulePath = "toebox"

// Options says what to bring up and where.
type Options struct {
	Paths
	QEMU, Kernel, Modules, Mirror string // as toolchain.Config
	Accel                         string // auto, kvm or tcg

	Net     string   // "nat" with options, another backend of the device, or "none" for no adapter
	More    []string // what adapters 1, 2 ... are plugged into, as Net
	Port    int      // on the host's loopback, forwarded to the guest's port 80 of adapter 0 by nat; 0 for none
	Impair  string   // how bad the wire is at first, as the device's --impair
	Pcap    string   // file to capture the adapter's frames in; of adapter N, NAME-N.EXTENSION
	NVM     string   // file with the adapter's non-volatile image; as Pcap
	Seed    uint64
	Verbose bool // of the device
	GDB     bool
	IOMMU   string // vm.IOMMUIntel, which is the default, or vm.IOMMUVirtio; of no meaning with UIO
	Driver  string // guest.DriverVFIO, which is the default, or guest.DriverUIO, which needs no IOMMU

	CPUs, MemoryMiB int                // 0 for the defaults
	Append          []string           // more of the kernel's command line
	Args            []string           // more of QEMU's
	Load            []string           // more kernel modules for the guest, by name
	Files           []initramfs.File   // more for the guest
	Handlers        control.Mux        // serve what the guest asks of the host
	Report          toolchain.Progress // may be nil

	card int // which adapter this is about
}

// Paths are the directories toebox works in.
type Paths struct {
	Cache   string // downloads and builds
	State   string // run folders
	Runtime string // for sockets; short
	Source  string // root of the toebox module
}

// DefaultPaths follows the XDG base directory specification and looks for the source
// upwards from here and from the program.
func DefaultPaths() (Paths, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return Paths{}, fmt.Errorf("rig: %w: set HOME", err)
	}
	xdg := func(name, fallback string) string {
		// The specification wants relative paths ignored.
		if v := os.Getenv(name); filepath.IsAbs(v) {
			return filepath.Join(v, "toebox")
		}
		return filepath.Join(home, fallback, "toebox")
	}
	p := Paths{Cache: xdg("XDG_CACHE_HOME", ".cache"), State: xdg("XDG_STATE_HOME", ".local/state")}
	p.Runtime = os.TempDir()
	if v := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(v) && writable(v) {
		p.Runtime = v
	}
	p.Source, err = FindSource()
	if errors.Is(err, errNoSource) {
		err = nil // only builds need it
	}
	return p, err
}

// writable says whether files can be made in a directory: after su, the variable may
// still name somebody else's.
func writable(dir string) bool {
	f, err := os.CreateTemp(dir, "toebox-")
	if err != nil {
		return false
	}
	f.Close()           //nolint:errcheck // empty
	os.Remove(f.Name()) //nolint:errcheck // empty
	return true
}

var errNoSource = errors.New("rig: the toebox source is neither here nor above the program: set TOEBOX_SOURCE to it")

// FindSource returns the root of the toebox module.
func FindSource() (string, error) {
	if dir := os.Getenv("TOEBOX_SOURCE"); dir != "" {
		if !isSource(dir) {
			return "", fmt.Errorf("rig: TOEBOX_SOURCE: %s is not the root of the toebox module", dir)
		}
		return filepath.Abs(dir)
	}
	var from []string
	if wd, err := os.Getwd(); err == nil {
		from = append(from, wd)
	}
	if exe, err := os.Executable(); err == nil {
		from = append(from, filepath.Dir(exe))
	}
	for _, dir := range from {
		for {
			if isSource(dir) {
				return dir, nil
			}
			up := filepath.Dir(dir)
			if up == dir {
				break
			}
			dir = up
		}
	}
	return "", errNoSource
}

func isSource(dir string) bool {
	f, err := os.Open(filepath.Join(dir, "go.mod"))
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // read only
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if name, ok := strings.CutPrefix(sc.Text(), "module "); ok {
			return strings.TrimSpace(name) == modulePath
		}
	}
	return false
}

// Tools is the configuration of package toolchain that goes with o.
func (o *Options) Tools() toolchain.Config {
	return toolchain.Config{
		CacheDir: o.Cache, QEMU: o.QEMU, Kernel: o.Kernel, Modules: o.Modules, Mirror: o.Mirror, Progress: o.Report,
	}
}

func (o *Options) say(format string, args ...any) {
	if o.Report != nil {
		o.Report.Step(fmt.Sprintf(format, args...))
	}
}

// MaxAdapters is how many adapters a machine has at most.
const MaxAdapters = 4

// adapters says how many there are.
func (o *Options) adapters() int {
	if o.Net == "none" {
		return 0
	}
	return 1 + len(o.More)
}

// Of returns the options of one adapter alone.
func (o *Options) Of(adapter int) Options {
	one := *o
	one.More = nil
	if adapter == 0 {
		return one
	}
	one.Net, one.Port = o.More[adapter-1], 0
	one.Pcap, one.NVM = numbered(o.Pcap, adapter), numbered(o.NVM, adapter)
	one.card = adapter
	return one
}

// numbered is a file's name for one adapter.
func numbered(path string, adapter int) string {
	if path == "" || adapter == 0 {
		return path
	}
	ext := filepath.Ext(path)
	return fmt.Sprintf("%s-%d%s", strings.TrimSuffix(path, ext), adapter, ext)
}
