// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"toebox/images/proc"
	"toebox/vdev/port"
)

const (
	deviceProgram = "toebox-device"
	keeperProgram = "keeper"
	deviceLog     = "device.log"
	statsSocket   = "stats"
	faultsFile    = "faults" // beside it: how bad the wire was made
	guestPort     = 80
)

// A device is what serves an adapter: a device process, or the keeper of one.
type device struct {
	proc  *proc.Process
	alive *os.File // its other end is the device's --parent-fd
	log   *os.File
	kept  *kept // nil: the process is the device itself
}

// Forward opens the host's side of a port forward, so that a port in use is found
// before anything is started.
func Forward(port int) (*net.TCPListener, error) {
	if port < 1 || port > 65535 {
		return nil, &UsageError{Text: fmt.Sprintf("--port %d: want 1 to 65535", port)}
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("port %d is in use: choose another with --port (TOEBOX_PORT)", port)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("port %d needs privileges: choose one from 1024 with --port (TOEBOX_PORT)", port)
	case err != nil:
		return nil, fmt.Errorf("port %d: %w", port, err)
	}
	return l, nil
}

// ListenSocket listens on a unix socket after removing a dead one at its path.
func ListenSocket(path string) (*net.UnixListener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close() //nolint:errcheck // nothing was said
		return nil, fmt.Errorf("rig: %s is in use", path)
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		os.Remove(path) //nolint:errcheck // the listen tells
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("rig: %w", err)
	}
	return l, nil
}

// An outfit is what device processes are given. It outlasts them, so that clients of
// its sockets wait while one takes over from another, and the capture goes on.
type outfit struct {
	socket *os.File   // for QEMU
	files  []*os.File // descriptors of the device from firstFile on
	args   []string   // of the device, but for its socket
	alive  *os.File   // the other end of a pipe among files
	log    *os.File
}

// Descriptors of a device process.
const (
	socketFile = 3
	firstFile  = 4
)

// equip opens what devices are given, at sockets that listen already: nobody can be too
// early. forward may be nil.
func (o *Options) equip(socketDir, logPath string, socket *net.UnixListener, forward *net.TCPListener) (_ *outfit, err error) {
	e := &outfit{}
	defer func() {
		if err != nil {
			e.close()
			err = fmt.Errorf("rig: device: %w", err)
		}
	}()
	// inherit returns the number a file will have in the device.
	inherit := func(f *os.File) string {
		e.files = append(e.files, f)
		return strconv.Itoa(firstFile + len(e.files) - 1)
	}
	if e.socket, err = socket.File(); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	e.alive = w
	stats, err := ListenSocket(filepath.Join(socketDir, statsSocket))
	if err != nil {
		r.Close() //nolint:errcheck // never used
		return nil, err
	}
	stats.SetUnlinkOnClose(false) // the devices listen on
	f, err := stats.File()
	stats.Close() //nolint:errcheck // the file is a duplicate
	e.args = []string{"--parent-fd=" + inherit(r)}
	if err != nil {
		return nil, err
	}
	e.args = append(e.args, "--control-fd="+inherit(f))
	backend, err := openTap(o.Net, inherit)
	if err != nil {
		return nil, err
	}
	if forward != nil {
		f, err := forward.File()
		if err != nil {
			return nil, err
		}
		sep := ":"
		if strings.Contains(backend, ":") {
			sep = ","
		}
		backend += fmt.Sprintf("%sfwd-fd=%s-:%d", sep, inherit(f), guestPort)
	}
	e.args = append(e.args, "--net="+backend)
	if o.Pcap != "" {
		f, err := os.Create(o.Pcap)
		if err != nil {
			return nil, err
		}
		e.args = append(e.args, "--pcap-fd="+inherit(f))
	}
	if o.Impair != "" {
		e.args = append(e.args, "--impair="+o.Impair)
	}
	e.args = append(e.args, "--faults="+filepath.Join(socketDir, faultsFile))
	if o.NVM != "" {
		e.args = append(e.args, "--nvm="+o.NVM)
	}
	if o.Seed != 0 {
		e.args = append(e.args, "--seed="+strconv.FormatUint(o.Seed, 10))
	}
	if o.card != 0 {
		e.args = append(e.args, "--card="+strconv.Itoa(o.card))
	}
	if o.Verbose {
		e.args = append(e.args, "-v")
	}
	e.log, err = os.Create(logPath)
	return e, err
}

// openTap opens the tap device that a network names, so that it outlasts the
// device processes, and returns the network with the file's number instead.
func openTap(network string, inherit func(*os.File) string) (string, error) {
	options, ok := strings.CutPrefix(network, "tap:")
	if !ok {
		return network, nil
	}
	list := strings.Split(options, ",")
	for i, option := range list {
		if name, ok := strings.CutPrefix(option, "if="); ok {
			f, err := port.OpenTap(name)
			if err != nil {
				return "", err
			}
			list[i] = "fd=" + inherit(f)
		}
	}
	return "tap:" + strings.Join(list, ","), nil
}

// handedOver closes what the processes have of their own.
func (e *outfit) handedOver() {
	for _, f := range append(e.files, e.socket) {
		if f != nil {
			f.Close() //nolint:errcheck // a duplicate
		}
	}
}

func (e *outfit) close() {
	e.handedOver()
	for _, f := range []*os.File{e.alive, e.log} {
		if f != nil {
			f.Close() //nolint:errcheck // nobody uses it
		}
	}
}

// device is what cmd, started with e, is.
func (e *outfit) device(cmd *exec.Cmd) (*device, error) {
	cmd.Stdout, cmd.Stderr = e.log, e.log
	p, err := proc.Start(cmd)
	if err != nil {
		e.close()
		return nil, err
	}
	e.handedOver()
	return &device{proc: p, alive: e.alive, log: e.log}, nil
}

// startDevice starts a device process.
func (e *outfit) startDevice(program string) (*device, error) {
	cmd := exec.Command(program, append([]string{fmt.Sprintf("--fd=%d", socketFile)}, e.args...)...)
	cmd.ExtraFiles = append([]*os.File{e.socket}, e.files...)
	return e.device(cmd)
}

// lastLine returns the end of a log for a message.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // read only
	const most = 2048
	if st, err := f.Stat(); err == nil && st.Size() > most {
		f.Seek(-most, io.SeekEnd) //nolint:errcheck // then the first part is as good
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return ""
	}
	text := strings.TrimSpace(string(b))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// close ends the process, in order if it will.
func (d *device) close() {
	d.proc.Stop(deviceGrace)
	if d.kept != nil {
		d.kept.close()
	}
	d.alive.Close() //nolint:errcheck // nobody reads any more
	d.log.Close()   //nolint:errcheck // a log
}
