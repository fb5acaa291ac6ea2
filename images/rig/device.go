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
)

const (
	deviceProgram = "toebox-device"
	statsSocket   = "stats"
	guestPort     = 80
)

// A device is a running device process and what belongs to it.
type device struct {
	proc  *proc.Process
	alive *os.File // its other end is the device's --parent-fd
	log   *os.File
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

// filer is a listener whose descriptor can be duplicated.
type filer interface{ File() (*os.File, error) }

// startDevice starts the device process on sockets that are open already: nobody can
// be too early. logs may be nil.
func (o *Options) startDevice(program, socketDir, logPath string, socket *net.UnixListener, forward *net.TCPListener) (*device, error) {
	var extra []*os.File
	defer func() {
		for _, f := range extra {
			f.Close() //nolint:errcheck // the child has its own
		}
	}()
	// inherit returns the number a file will have in the child.
	inherit := func(f *os.File) string {
		extra = append(extra, f)
		return strconv.Itoa(2 + len(extra))
	}
	dup := func(l filer) (string, error) {
		f, err := l.File()
		if err != nil {
			return "", fmt.Errorf("rig: device: %w", err)
		}
		return inherit(f), nil
	}
	fd, err := dup(socket)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("rig: device: %w", err)
	}
	args := []string{"--fd=" + fd, "--parent-fd=" + inherit(r), "--control-path=" + filepath.Join(socketDir, statsSocket)}
	backend := o.Net
	if forward != nil {
		fd, err := dup(forward)
		if err != nil {
			w.Close() //nolint:errcheck // never used
			return nil, err
		}
		sep := ":"
		if strings.Contains(backend, ":") {
			sep = ","
		}
		backend += fmt.Sprintf("%sfwd-fd=%s-:%d", sep, fd, guestPort)
	}
	args = append(args, "--net="+backend)
	if o.Pcap != "" {
		args = append(args, "--pcap="+o.Pcap)
	}
	if o.NVM != "" {
		args = append(args, "--nvm="+o.NVM)
	}
	if o.Seed != 0 {
		args = append(args, "--seed="+strconv.FormatUint(o.Seed, 10))
	}
	if o.Verbose {
		args = append(args, "-v")
	}
	log, err := os.Create(logPath)
	if err != nil {
		w.Close() //nolint:errcheck // never used
		return nil, fmt.Errorf("rig: device: %w", err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = extra
	p, err := proc.Start(cmd)
	if err != nil {
		return nil, errors.Join(err, w.Close(), log.Close())
	}
	return &device{proc: p, alive: w, log: log}, nil
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

// close ends the device process, in order if it will.
func (d *device) close() {
	d.proc.Stop(deviceGrace)
	d.alive.Close() //nolint:errcheck // nobody reads any more
	d.log.Close()   //nolint:errcheck // a log
}
