// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
)

// What the program finds (DRIVER.md).
const (
	protocol   = "toebox-driver 1"
	memoryFD   = 3
	memorySize = 8 << 20
	memoryIOVA = 0x40_0000_0000
	maxLine    = 64 << 10
)

// endTime bounds the wait for the outputs of a program that was killed.
const endTime = 5 * time.Second

// Config says what to run against which adapter.
type Config struct {
	// Command is run by the shell.
	Command string
	// Socket is the path of the adapter's vfio-user server.
	Socket string
	// Exec, if not nil, runs the program instead, until ctx ends at the latest,
	// where it reaches the adapter by itself.
	Exec func(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error
	// Stderr gets what the program says beside the protocol; nil: nobody.
	Stderr io.Writer
}

// StatusError is an answer "err".
type StatusError struct {
	Status int // SPEC.md §8; 0: none
	Text   string
}

func (e *StatusError) Error() string { return fmt.Sprintf("status %d: %s", e.Status, e.Text) }

// Driver is a program under test.
type Driver struct {
	cfg    Config
	in     io.WriteCloser
	out    io.ReadCloser
	end    func() error // ends the program; nil until it was started
	lines  chan string  // closed at the end of the program's output
	gone   chan struct{}
	memory *os.File         // nil if the program has no use for it
	client *vfiouser.Client // nil until the program opens the adapter
	ops    []string
}

// Start starts the program and waits for its first line.
func Start(ctx context.Context, cfg Config) (*Driver, error) {
	d := &Driver{cfg: cfg, lines: make(chan string), gone: make(chan struct{})}
	start := d.startHere
	if cfg.Exec != nil {
		start = d.startThere
	}
	err := start()
	if err == nil {
		err = d.begin(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("foreign: start: %w", err), d.Close())
	}
	return d, nil
}

// startHere starts a process, with memory for DMA.
func (d *Driver) startHere() error {
	fd, err := unix.MemfdCreate("toebox driver", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	d.memory = os.NewFile(uintptr(fd), "memory")
	if err := d.memory.Truncate(memorySize); err != nil {
		return err
	}
	cmd := exec.Command("/bin/sh", "-c", d.cfg.Command)
	cmd.Env = append(os.Environ(), "TOEBOX_SOCKET="+d.cfg.Socket, fmt.Sprintf("TOEBOX_MEMORY_FD=%d", memoryFD))
	cmd.ExtraFiles, cmd.Stderr = []*os.File{d.memory}, d.cfg.Stderr
	// A shell may have children: all end together.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = endTime // one that left the group may hold its outputs
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		return err
	}
	d.in, d.out = in, r
	d.end = func() error {
		// The group's leader is not yet waited for, so the number is still its.
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait() // killed
		if errors.Is(err, syscall.ESRCH) {
			err = nil
		}
		return err
	}
	return nil
}

// startThere starts the program by Exec.
func (d *Driver) startThere() error {
	ctx, cancel := context.WithCancel(context.Background())
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	stderr := d.cfg.Stderr
	if stderr == nil {
		stderr = io.Discard
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := d.cfg.Exec(ctx, inR, outW, stderr)
		inR.Close()
		outW.CloseWithError(err) // nil: the end of the output
	}()
	d.in, d.out = inW, outR
	d.end = func() error {
		cancel()
		outR.Close()
		<-ended
		return nil
	}
	return nil
}

// begin reads the first line.
func (d *Driver) begin(ctx context.Context) error {
	go d.read()
	line, err := d.line(ctx)
	if err != nil {
		return err
	}
	ops, ok := strings.CutPrefix(line, protocol)
	if !ok {
		return fmt.Errorf("the program began with %q, want %q and its operations", line, protocol)
	}
	d.ops = strings.Fields(ops)
	return nil
}

// read passes lines on until the output ends or Close is called.
func (d *Driver) read() {
	defer close(d.lines)
	in := bufio.NewScanner(d.out)
	in.Buffer(make([]byte, 4096), maxLine)
	for in.Scan() {
		select {
		case d.lines <- in.Text():
		case <-d.gone:
			return
		}
	}
}

func (d *Driver) line(ctx context.Context) (string, error) {
	select {
	case s, ok := <-d.lines:
		if !ok {
			return "", fmt.Errorf("the program ended, or wrote a line too long: %w", io.ErrUnexpectedEOF)
		}
		return s, nil
	case <-ctx.Done():
		return "", fmt.Errorf("no line from the program: %w", ctx.Err())
	}
}

// Offers reports whether the program knows an operation.
func (d *Driver) Offers(op string) bool { return slices.Contains(d.ops, op) }

// Do has the program do an operation and returns the words of its answer.
// What the program asks of the bus meanwhile is done.
func (d *Driver) Do(ctx context.Context, op string, args ...any) ([]string, error) {
	// A program that does not read fills the pipe.
	defer context.AfterFunc(ctx, func() { d.in.Close() })()
	line := op + " " + fmt.Sprintln(args...)
	if _, err := io.WriteString(d.in, line); err != nil {
		return nil, fmt.Errorf("foreign: %s: %w", op, err)
	}
	for {
		answer, err := d.line(ctx)
		if err != nil {
			return nil, fmt.Errorf("foreign: %s: %w", op, err)
		}
		words := strings.Fields(answer)
		switch {
		case len(words) > 0 && words[0] == "ok":
			return words[1:], nil
		case len(words) > 1 && words[0] == "err":
			status, err := strconv.Atoi(words[1])
			if err != nil {
				return nil, fmt.Errorf("foreign: %s: answer %q has no status", op, answer)
			}
			return nil, &StatusError{status, strings.Join(words[2:], " ")}
		case len(words) > 1 && words[0] == "bus":
			if err := d.serve(ctx, words[1], words[2:]); err != nil {
				return nil, fmt.Errorf("foreign: %s: %w", op, err)
			}
		default:
			return nil, fmt.Errorf("foreign: %s: answer %q is neither ok, err nor bus", op, answer)
		}
	}
}

// serve does what the program asks of the bus.
func (d *Driver) serve(ctx context.Context, what string, words []string) error {
	out, err := d.bus(ctx, what, words)
	answer := "ok " + out
	if err != nil {
		answer = "err " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	_, err = io.WriteString(d.in, strings.TrimSpace(answer)+"\n")
	return err
}

func (d *Driver) bus(ctx context.Context, what string, words []string) (string, error) {
	var n []uint64
	for _, w := range words {
		v, err := strconv.ParseUint(w, 0, 64)
		if err != nil {
			return "", err
		}
		n = append(n, v)
	}
	want := map[string]int{"open": 0, "cfgr": 2, "cfgw": 3, "r32": 2, "w32": 3}
	if k, ok := want[what]; !ok || k != len(n) {
		return "", fmt.Errorf("bus %s with %d numbers: see DRIVER.md", what, len(n))
	}
	if what == "open" {
		return d.open(ctx)
	}
	if d.client == nil {
		return "", errors.New("bus open comes first")
	}
	region, offset, size, value := vfiouser.RegionConfig, n[0], uint64(4), uint64(0)
	switch what {
	case "cfgr", "cfgw":
		size = n[1]
	default:
		if n[0] > 5 {
			return "", fmt.Errorf("no BAR %d", n[0])
		}
		region, offset = int(n[0]), n[1]
	}
	if size != 1 && size != 2 && size != 4 {
		return "", fmt.Errorf("an access of %d bytes", size)
	}
	if len(n) == 3 {
		value = n[2]
	}
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], value)
	switch what {
	case "cfgw":
		return "", d.client.WriteRegion(region, offset, p[:size])
	case "w32":
		return "", d.client.PostRegion(region, offset, p[:size])
	}
	if err := d.client.ReadRegion(region, offset, p[:size]); err != nil {
		return "", err
	}
	return strconv.FormatUint(uint64(binary.LittleEndian.Uint32(p[:])), 10), nil
}

// open connects to the adapter and gives it the memory.
func (d *Driver) open(ctx context.Context) (string, error) {
	if d.memory == nil {
		return "", errors.New("the kit lends no bus here: the adapter is at $TOEBOX_BDF")
	}
	if d.client == nil {
		c, err := vfiouser.Dial(ctx, d.cfg.Socket, vfiouser.ClientConfig{})
		if err != nil {
			return "", err
		}
		if err := c.Map(memoryIOVA, memorySize, 0, vfiouser.ProtRead|vfiouser.ProtWrite, d.memory); err != nil {
			c.Close()
			return "", err
		}
		d.client = c
	}
	return fmt.Sprintf("%#x %d", uint64(memoryIOVA), memorySize), nil
}

// Close ends the program and lets the adapter go. It is idempotent.
func (d *Driver) Close() error {
	var errs []error
	if d.end != nil {
		close(d.gone)
		d.in.Close()
		errs = append(errs, d.end())
		d.out.Close() // ends the reader, whoever holds the other end
		for range d.lines {
		}
		d.end = nil
	}
	if d.client != nil {
		errs = append(errs, d.client.Close())
		d.client = nil
	}
	if d.memory != nil {
		errs = append(errs, d.memory.Close())
		d.memory = nil
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("foreign: close: %w", err)
	}
	return nil
}
