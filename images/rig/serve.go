// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"toebox/images/initramfs"
	"toebox/images/vm"
)

// A Served is a device process without a machine.
type Served struct {
	Socket string // where QEMU finds it
	Dir    string // the run's folder, with device.log
	device *device
	run    *folder
	once   sync.Once
}

// Serve builds the device and starts it at socket, a made-up path if empty.
func Serve(ctx context.Context, o Options, socket string) (s *Served, err error) {
	if o.Source == "" {
		return nil, errNoSource
	}
	var forward *net.TCPListener
	if o.Port != 0 && strings.HasPrefix(o.Net, "nat") {
		if forward, err = Forward(o.Port); err != nil {
			return nil, err
		}
		defer forward.Close() //nolint:errcheck // the device has its own
	}
	programs, err := initramfs.Programs(ctx, initramfs.Config{CacheDir: o.Cache, Source: o.Source, Progress: o.Report}, devicePackage)
	if err != nil {
		return nil, err
	}
	run, err := newRun(o.Paths, time.Now(), o.Port, 1)
	if err != nil {
		return nil, err
	}
	if socket == "" {
		socket = filepath.Join(run.Sockets, vm.DeviceSocket)
	}
	s = &Served{Socket: socket, Dir: run.dir, run: run}
	l, err := ListenSocket(socket)
	if err != nil {
		run.close()
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the device listens on
	e, err := o.equip(run.Sockets, filepath.Join(run.dir, deviceLog), l, forward)
	l.Close() //nolint:errcheck // the outfit has its own
	if err == nil {
		s.device, err = e.startDevice(filepath.Join(programs, deviceProgram))
	}
	if err != nil {
		err = errors.Join(err, os.Remove(socket))
		run.close()
		return nil, err
	}
	return s, nil
}

// Done is closed when the device has ended.
func (s *Served) Done() <-chan struct{} { return s.device.proc.Done() }

// Err waits for the device's end and says how it was.
func (s *Served) Err() error {
	if err := s.device.proc.Err(); err != nil {
		return fmt.Errorf("%w (%v): %s", ErrDevice, err, lastLine(filepath.Join(s.Dir, deviceLog)))
	}
	return nil
}

// Close ends the device and removes its sockets.
func (s *Served) Close() {
	s.once.Do(func() {
		s.device.close()
		os.Remove(s.Socket) //nolint:errcheck // gone is what we want
		s.run.close()
	})
}
