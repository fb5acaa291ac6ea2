// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"toebox/images/control"
	"toebox/images/initramfs/layout"
)

const (
	tool         = "/bin/toebox-guest"
	readyLine    = "ready\n"
	readyTimeout = 60 * time.Second // slow machines without KVM included
	portTimeout  = 10 * time.Second
	stopTimeout  = 2 * time.Second
	reapPeriod   = 10 * time.Second
	callTimeout  = 10 * time.Second
	maxPhases    = 16
)

// environment is what commands of the control channel start with.
func environment() []string {
	return []string{
		"PATH=/bin:/bbin:/sbin:/usr/bin", "HOME=/root", "USER=root", "SHELL=/bbin/gosh", "TERM=linux",
		"TMPDIR=/tmp", "HOSTNAME=toebox",
	}
}

// Main starts the guest; it returns only when there is no control channel.
func Main() error {
	if err := mounts(); err != nil {
		return err
	}
	for _, kv := range environment() {
		k, v, _ := strings.Cut(kv, "=")
		os.Setenv(k, v) //nolint:errcheck // the names are good
	}
	unix.Sethostname([]byte("toebox"))                      //nolint:errcheck // a nicety
	os.WriteFile("/proc/sys/kernel/printk", []byte("4"), 0) //nolint:errcheck // only the console's noise
	linkUp("lo")
	// The port's own device waits for the driver of the IOMMU that it is behind.
	modules, loaded := loadModules()
	conn, err := openPort(Port, portTimeout)
	if err != nil {
		return err
	}
	g := &guest{
		phases:  make(chan Phase, maxPhases),
		modules: func() (string, error) { return modules, loaded },
		driver:  DriverVFIO,
	}
	if hasWord("/proc/cmdline", UIO) {
		g.driver = DriverUIO
	}
	g.session = control.New(conn, control.Config{
		Role: control.Guest,
		Info: map[string]string{"kernel": kernelRelease()},
		Handler: control.Mux{
			control.KindExec: func(ctx context.Context, st *control.Stream) control.Result {
				return control.Exec(ctx, st, environment())
			},
			KindPowerOff: func(context.Context, *control.Stream) control.Result {
				go g.powerOff()
				return control.Result{}
			},
		}.Serve,
	})
	go reap()
	go g.tell()
	g.start()
	<-g.session.Done()
	// The host is gone or the channel broke: nothing can be reported any more.
	fmt.Fprintf(os.Stderr, "tbinit: %v\n", g.session.Err())
	g.powerOff()
	return g.session.Err()
}

type guest struct {
	session *control.Session
	phases  chan Phase             // on their way to the host
	modules func() (string, error) // what came of loading them
	driver  string                 // DriverVFIO or DriverUIO
	servers []*server              // one for each adapter; all there before any power-off can matter
}

// start brings the guest up, phase after phase.
func (g *guest) start() {
	if !hasWord("/proc/cmdline", NoAdapter) {
		g.startAdapter()
		return
	}
	detail, err := g.modules()
	g.report(PhaseModules, detail, err)
	if err == nil {
		g.report(PhaseReady, "", nil)
	}
}

// startAdapter goes through the phases that end with the guest tool serving.
func (g *guest) startAdapter() {
	adapters := 0
	phases := []struct {
		name string
		run  func() (string, error)
	}{
		{PhaseModules, g.modules},
		{PhaseBind, func() (string, error) {
			all, err := bindAll("/sys/bus/pci", g.driver, bindTimeout)
			adapters = len(all)
			return strings.Join(all, ", "), err
		}},
		{PhaseServe, func() (string, error) {
			for n := range adapters {
				if err := g.serve(n); err != nil {
					return "", err
				}
			}
			return "", nil
		}},
	}
	for _, p := range phases {
		detail, err := p.run()
		g.report(p.name, detail, err)
		if err != nil {
			return
		}
	}
	g.report(PhaseReady, "", nil)
}

func (g *guest) report(name, detail string, err error) {
	p := Phase{Name: name, Uptime: uptime(), Detail: detail}
	if err != nil {
		p.Error = err.Error()
		fmt.Fprintf(os.Stderr, "tbinit: %s: %v\n", name, err)
	}
	select {
	case g.phases <- p:
	default: // nobody has asked for a long time
	}
}

// tell reports phases to the host, which may be late or not there at all: the guest
// starts without it.
func (g *guest) tell() {
	for p := range g.phases {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		if err := control.Call(ctx, g.session, KindPhase, p, nil); err != nil {
			fmt.Fprintf(os.Stderr, "tbinit: report: %v\n", err)
		}
		cancel()
	}
}

// mounts makes the file systems that the kernel serves visible.
func mounts() error {
	for _, m := range []struct {
		kind, dir, options string
		flags              uintptr
	}{
		{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV},
		{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NODEV},
		{"devtmpfs", "/dev", "mode=0755", unix.MS_NOSUID},
		{"devpts", "/dev/pts", "mode=0620,ptmxmode=0666", unix.MS_NOSUID},
		{"tmpfs", "/tmp", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/run", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/dev/shm", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return fmt.Errorf("guest: %w", err)
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, m.flags, m.options); err != nil && err != unix.EBUSY {
			return fmt.Errorf("guest: mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// openPort opens the virtio-serial port of that name, which there is no udev to
// link to.
func openPort(name string, timeout time.Duration) (io.ReadWriteCloser, error) {
	for deadline := time.Now().Add(timeout); ; time.Sleep(10 * time.Millisecond) {
		files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, fmt.Errorf("guest: %w", err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil || strings.TrimSpace(string(b)) != name {
				continue
			}
			p, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(f)), os.O_RDWR, 0)
			if err != nil {
				return nil, fmt.Errorf("guest: control port: %w", err)
			}
			return &port{File: p}, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("guest: no virtio-serial port named %s", name)
		}
	}
}

// A port is a virtio-serial port, whose reads end at once while nobody is connected
// to the host's end (drivers/char/virtio_console.c, port_fops_read). Until somebody
// was, they wait: a machine started by hand has no host to talk to.
type port struct {
	*os.File
	met bool // somebody was connected
}

func (p *port) Read(b []byte) (int, error) {
	for ; ; time.Sleep(10 * time.Millisecond) {
		n, err := p.File.Read(b)
		if n > 0 {
			p.met = true
		}
		if err != io.EOF || p.met {
			return n, err
		}
	}
}

// loadModules loads the image's kernel modules, which are named in their order.
func loadModules() (string, error) {
	files, err := filepath.Glob("/" + layout.ModuleDir + "/*.ko")
	if err != nil {
		return "", fmt.Errorf("guest: %w", err)
	}
	var names []string
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("guest: module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close() //nolint:errcheck // read only
		name := strings.TrimSuffix(filepath.Base(path), ".ko")
		if err != nil && err != unix.EEXIST {
			return "", fmt.Errorf("guest: module %s: %w", name, err)
		}
		_, name, _ = strings.Cut(name, "-")
		names = append(names, name)
	}
	return strings.Join(names, " "), allowInterrupts("/sys")
}

// allowInterrupts lets devices behind a virtio-iommu be given to programs: VFIO
// refuses to where an IOMMU does not check interrupts, as that one does not on x86.
func allowInterrupts(sys string) error {
	found, err := filepath.Glob(filepath.Join(sys, "bus/virtio/drivers/virtio_iommu/virtio*"))
	if err != nil || len(found) == 0 {
		return err
	}
	if err := os.WriteFile(filepath.Join(sys, "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"), []byte("Y"), 0); err != nil {
		return fmt.Errorf("guest: %w", err)
	}
	return nil
}

// server is a running guest tool.
type server struct {
	*os.Process
	gone chan struct{} // closed when it has ended
	err  error         // how; set before
}

// serve starts the guest tool for an adapter and waits until it says it is ready.
func (g *guest) serve(adapter int) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("guest: %w", err)
	}
	defer r.Close() //nolint:errcheck // a pipe
	log := &lastLine{to: os.Stderr}
	cmd := exec.Command(tool, fmt.Sprintf("-adapter=%d", adapter), "serve", "--driver="+g.driver, "--ready-fd=3")
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close() //nolint:errcheck // the tool's now
	if err != nil {
		return fmt.Errorf("guest: %w", err)
	}
	s := &server{Process: cmd.Process, gone: make(chan struct{})}
	g.servers = append(g.servers, s)
	go func() {
		s.err = cmd.Wait()
		close(s.gone)
	}()
	r.SetReadDeadline(time.Now().Add(readyTimeout)) //nolint:errcheck // pipes have deadlines
	b := make([]byte, len(readyLine))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != readyLine {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("guest: %s was not ready after %v: %s", tool, readyTimeout, log)
		}
		select {
		case <-s.gone:
			err = s.err
		case <-time.After(stopTimeout):
		}
		return fmt.Errorf("guest: %s ended before it was ready (%v): %s", tool, err, log)
	}
	go func() {
		<-s.gone
		g.report(PhaseServed, "", fmt.Errorf("guest: %s ended (%v): %s", tool, s.err, log))
	}()
	return nil
}

// powerOff ends the guest tools in order and switches the machine off.
func (g *guest) powerOff() {
	for _, s := range g.servers {
		s.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	for _, s := range g.servers {
		select {
		case <-s.gone:
		case <-ctx.Done():
		}
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) //nolint:errcheck // the host notices either way
}

// hasWord says whether a file's words include word.
func hasWord(path, word string) bool {
	b, err := os.ReadFile(path)
	return err == nil && slices.Contains(strings.Fields(string(b)), word)
}

// reap collects orphans. Children of our own are left to those who wait for them:
// an orphan is a zombie that is still there after a whole period.
func reap() {
	before := map[int]bool{}
	for range time.Tick(reapPeriod) {
		now := map[int]bool{}
		for _, pid := range zombies("/proc") {
			if !before[pid] {
				now[pid] = true
				continue
			}
			unix.Wait4(pid, nil, unix.WNOHANG, nil) //nolint:errcheck // somebody else was faster
		}
		before = now
	}
}

// zombies lists the dead children of process 1 below a /proc (proc_pid_stat(5)).
func zombies(proc string) []int {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join(proc, e.Name(), "stat"))
		if err != nil {
			continue
		}
		// The name in parentheses may hold anything, parentheses included.
		i := strings.LastIndexByte(string(b), ')')
		f := strings.Fields(string(b[i+1:]))
		if len(f) >= 2 && f[0] == "Z" && f[1] == "1" {
			pids = append(pids, pid)
		}
	}
	return pids
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// uptime returns milliseconds since the kernel's start.
func uptime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return ts.Nano() / int64(time.Millisecond)
}
