// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"toebox/firmware/engine"
	"toebox/vdev/device"
	"toebox/vdev/port"
	vfiouser "toebox/vfio-user"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitSetup  = 125
)

const (
	// closeTime bounds an orderly end behind the adapter's orderly stop, which it
	// begins with (SPEC.md §11.1).
	closeTime = 4 * time.Second
)

type flags struct {
	SocketPath  string `placeholder:"PATH" xor:"socket" required:"" help:"Unix socket to listen on for vfio-user clients."`
	FD          int    `placeholder:"N" xor:"socket" required:"" name:"fd" help:"Inherited unix socket that listens already."`
	Net         string `default:"none" help:"Network: none, or nat[:fwd=tcp:HOSTIP:PORT-:PORT,fwd=udp:HOSTIP:PORT-:PORT,fwd-fd=N-:PORT,...], or tap:if=NAME,ip=ADDR/LEN[,gw=ADDR][,dns=ADDR][,mtu=N] (fd=N for if=NAME: an inherited file)."`
	Impair      string `placeholder:"RULES" help:"How bad the wire is: none, or [to.|from.]loss=1%,delay=5ms,jitter=T,reorder=P,reorderby=T,duplicate=P,corrupt=P,rate=N,seed=N."`
	Faults      string `placeholder:"FILE" help:"File that keeps how bad the wire was made last; what it says holds instead of --impair."`
	Pcap        string `placeholder:"FILE" xor:"pcap" help:"Record all frames in this pcapng file."`
	PcapFD      int    `placeholder:"N" xor:"pcap" name:"pcap-fd" help:"Inherited pcapng file; the record goes on where it ends."`
	ControlPath string `placeholder:"PATH" xor:"control" help:"Unix socket for statistics and faults: HTTP, GET /stats, GET and PUT /fault/net."`
	ControlFD   int    `placeholder:"N" xor:"control" name:"control-fd" help:"Inherited unix socket for statistics, which listens already."`
	NVM         string `placeholder:"FILE" name:"nvm" help:"File of the non-volatile image."`
	Seed        uint64 `placeholder:"N" help:"Seed of everything random; 0: not repeatable."`
	Card        uint32 `placeholder:"N" help:"Number of this adapter among those of its machine: its address, as the factory gives it, is another one's with another number."`
	Generation  uint32 `placeholder:"N" env:"TOEBOX_GENERATION" help:"How often this adapter was started, this time included."`
	// Who ends the process may wait for no more than a second.
	StopTime time.Duration `default:"500ms" placeholder:"T" name:"stop-time" help:"How long the adapter may take for an orderly stop when the process ends (${default})."`
	ParentFD int           `placeholder:"N" name:"parent-fd" help:"Inherited pipe at whose end the process ends."`
	Pprof    bool          `help:"Serve /debug/pprof/ on the control socket."`
	Verbose  bool          `short:"v" help:"Log more."`
}

func main() {
	share()
	os.Exit(run(os.Args[1:], os.Stderr))
}

// share leaves half the processors to the virtual machine, unless GOMAXPROCS says how
// many the process may use: goroutines that take turns on one cost less, and answer
// sooner, than threads that wake each other on processors which the guest keeps busy.
func share() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0)/2, 1))
	}
}

// run is the command; it returns the exit status.
func run(args []string, stderr io.Writer) int {
	var c flags
	exit := -1
	parser, err := kong.New(&c, kong.Name("toebox-device"),
		kong.Description("One offload adapter, served over vfio-user."),
		kong.Writers(stderr, stderr), kong.Exit(func(code int) { exit = code }))
	if err != nil {
		fmt.Fprintln(stderr, "toebox-device:", err)
		return exitFailed
	}
	_, err = parser.Parse(args)
	switch {
	case exit >= 0: // --help
		return exit
	case err != nil:
		fmt.Fprintln(stderr, "toebox-device:", err)
		return exitUsage
	}
	level := slog.LevelInfo
	if c.Verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	engine.RedirectStackLog(log)

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	d, err := open(&c, cancel, log)
	if err != nil {
		fmt.Fprintln(stderr, "toebox-device:", err)
		return exitSetup
	}
	// An end that hangs is not an end.
	context.AfterFunc(ctx, func() {
		limit := c.StopTime + closeTime
		time.AfterFunc(limit, func() {
			fmt.Fprintln(stderr, "toebox-device: did not end within", limit)
			os.Exit(exitFailed)
		})
	})
	if err := d.serve(ctx); err != nil {
		fmt.Fprintln(stderr, "toebox-device:", err)
		return exitFailed
	}
	return exitOK
}

// process is an adapter with its sockets.
type process struct {
	device  *device.Device
	client  *net.UnixListener
	control *control      // nil without a socket for it
	stop    time.Duration // that an orderly stop may take
	log     *slog.Logger
}

// open makes everything that can fail. On error nothing stays open.
func open(c *flags, cancel func(), log *slog.Logger) (_ *process, err error) {
	p := &process{stop: c.StopTime, log: log}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if err := watchParent(c.ParentFD, cancel); err != nil {
		return nil, err
	}
	if c.FD != 0 {
		p.client, err = inheritUnix("--fd", c.FD)
	} else {
		p.client, err = vfiouser.Listen(c.SocketPath)
	}
	if err != nil {
		return nil, err
	}
	var statistics *net.UnixListener
	switch {
	case c.ControlFD != 0:
		statistics, err = inheritUnix("--control-fd", c.ControlFD)
	case c.ControlPath != "":
		statistics, err = vfiouser.Listen(c.ControlPath)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && statistics != nil && p.control == nil {
			statistics.Close()
		}
	}()
	impair, err := port.ParseImpairments(c.Impair)
	if err != nil {
		return nil, fmt.Errorf("--impair: %w", err)
	}
	if err := readFaults(c.Faults, &impair); err != nil {
		return nil, fmt.Errorf("--faults: %w", err)
	}
	cfg := device.Config{Impair: impair, Firmware: newFirmware, NVMPath: c.NVM, Seed: c.Seed, Card: c.Card, Generation: c.Generation, Logger: log}
	file, err := openCapture(c)
	if err != nil {
		return nil, err
	}
	if file != nil {
		cfg.Capture = file
	}
	if cfg.Net, err = device.ParseNet(c.Net); err != nil {
		if cfg.Capture != nil {
			cfg.Capture.(io.Closer).Close()
		}
		return nil, fmt.Errorf("--net: %w", err)
	}
	if p.device, err = device.New(cfg); err != nil {
		return nil, err
	}
	if statistics != nil {
		p.control = serveControl(statistics, p.device, c.Faults, c.Pprof, log)
	}
	return p, nil
}

// openCapture opens what frames are recorded in; nil: nothing.
func openCapture(c *flags) (*os.File, error) {
	switch {
	case c.Pcap != "":
		file, err := os.Create(c.Pcap)
		if err != nil {
			return nil, fmt.Errorf("--pcap: %w", err)
		}
		return file, nil
	case c.PcapFD != 0:
		file, err := device.InheritedFile(strconv.Itoa(c.PcapFD))
		if err != nil {
			return nil, fmt.Errorf("--pcap-fd: %w", err)
		}
		if err := port.ResumeCapture(file); err != nil {
			file.Close()
			return nil, fmt.Errorf("--pcap-fd: %w", err)
		}
		return file, nil
	}
	return nil, nil
}

// serve offers the adapter until ctx ends and it has stopped, and closes
// everything.
func (p *process) serve(ctx context.Context) error {
	serving, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() {
		defer end()
		limited, cancel := context.WithTimeout(serving, p.stop)
		defer cancel()
		if err := p.device.Stop(limited); err != nil {
			p.log.Warn("adapter ends without an orderly stop", "err", err)
		}
	})()
	p.log.Info("adapter is up", "socket", p.client.Addr().String())
	err := p.device.Serve(serving, p.client)
	return errors.Join(err, p.close())
}

func (p *process) close() error {
	var errs []error
	if p.client != nil {
		errs = append(errs, p.client.Close())
	}
	if p.control != nil {
		errs = append(errs, p.control.close())
	}
	if p.device != nil {
		errs = append(errs, p.device.Close())
	}
	return errors.Join(errs...)
}

// watchParent calls cancel when the pipe that the parent holds is closed, by
// whatever end the parent comes to.
func watchParent(fd int, cancel func()) error {
	if fd == 0 {
		return nil
	}
	file, err := device.InheritedFile(strconv.Itoa(fd))
	if err != nil {
		return fmt.Errorf("--parent-fd: %w", err)
	}
	go func() {
		defer file.Close()
		var b [64]byte
		for {
			if _, err := file.Read(b[:]); err != nil {
				cancel()
				return
			}
		}
	}()
	return nil
}

// inheritUnix takes over an inherited unix socket that listens.
func inheritUnix(flag string, fd int) (*net.UnixListener, error) {
	file, err := device.InheritedFile(strconv.Itoa(fd))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("%s: file descriptor %d is no unix socket", flag, fd)
	}
	u.SetUnlinkOnClose(false) // the path is the parent's
	return u, nil
}
