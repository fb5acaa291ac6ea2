// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"toebox/images/control"
	"toebox/images/devbuild"
	"toebox/images/toolchain/toolchaintest"
)

const reloadPatience = 60 * time.Second

// A teller keeps what a run says.
type teller struct {
	mu    sync.Mutex
	lines []string
	news  chan struct{}
}

func (s *teller) Amount(string, int64, int64) {}

func (s *teller) Step(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
	close(s.news)
	s.news = make(chan struct{})
}

// wait waits until the run has said text.
func (s *teller) wait(t *testing.T, text string) {
	t.Helper()
	for deadline := time.After(reloadPatience); ; {
		s.mu.Lock()
		all, news := strings.Join(s.lines, "\n"), s.news
		s.mu.Unlock()
		if strings.Contains(all, text) {
			return
		}
		select {
		case <-news:
		case <-deadline:
			t.Fatalf("it never said %q, but\n%s", text, all)
		}
	}
}

// A machineUnderReload is a machine whose guest serves HTTP.
type machineUnderReload struct {
	*Instance
	t    *testing.T
	told *teller
	url  string

	capture string // file
}

func upForReload(t *testing.T, change ...func(*Options)) *machineUnderReload {
	t.Helper()
	m, err := tryForReload(t, "nat", change...)
	if err != nil {
		var run *RunError
		if errors.As(err, &run) {
			b, _ := os.ReadFile(filepath.Join(run.Dir, deviceLog))
			t.Logf("device:\n%s", b)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Close()
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(m.Dir, deviceLog))
			t.Logf("told:\n%s\ndevice:\n%s", strings.Join(m.told.lines, "\n"), b)
		}
	})
	return m
}

func tryForReload(t *testing.T, network string, change ...func(*Options)) (*machineUnderReload, error) {
	t.Helper()
	c := toolchaintest.Config(t)
	toolchaintest.QEMU(t)
	toolchaintest.Kernel(t)
	p := testPaths(t)
	p.Cache = c.CacheDir
	var err error
	if p.Source, err = FindSource(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	m := &machineUnderReload{t: t, told: &teller{news: make(chan struct{})}, url: fmt.Sprintf("http://127.0.0.1:%d", port), capture: filepath.Join(t.TempDir(), "capture")}
	o := Options{
		Paths: p, QEMU: c.QEMU, Kernel: c.Kernel, Modules: c.Modules, Accel: os.Getenv("TOEBOX_ACCEL"),
		Net: network, Port: port, Pcap: m.capture, Report: m.told,
	}
	for _, f := range change {
		f(&o)
	}
	m.Instance, err = Up(t.Context(), o)
	return m, err
}

// get asks the guest's server once.
func (m *machineUnderReload) get(path string, want int) error {
	client := http.Client{Timeout: reloadPatience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(m.url + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || want > 0 && len(b) != want) {
		err = fmt.Errorf("%s: status %d with %d bytes", path, resp.StatusCode, len(b))
	}
	return err
}

// answers waits until the guest's server does.
func (m *machineUnderReload) answers() {
	m.t.Helper()
	for deadline := time.Now().Add(reloadPatience); ; <-time.After(10 * time.Millisecond) {
		err := m.get("/", 0)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("the guest does not answer: %v", err)
		}
	}
}

// exec runs a program in the guest and returns what it printed.
func (m *machineUnderReload) exec(args ...string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), reloadPatience)
	defer cancel()
	var out, errs bytes.Buffer
	res, err := control.Run(ctx, m.Control(), control.Request{Args: args}, control.Streams{Stdout: &out, Stderr: &errs})
	if err != nil || res.Status != 0 {
		m.t.Fatalf("%v: %+v, %v, %s", args, res, err, &errs)
	}
	return out.String()
}

func (m *machineUnderReload) generation() uint32 { return m.stats(0).Generation }

// deviceStats is what is looked at of a device's statistics.
type deviceStats struct {
	Generation uint32
	MAC        string
}

func (m *machineUnderReload) stats(adapter int) (s deviceStats) {
	m.t.Helper()
	client := http.Client{Timeout: reloadPatience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", m.StatsSocket(adapter))
		},
	}}
	resp, err := client.Get("http://device/stats")
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// A stream of requests goes on while the device is replaced and dies.
type requests struct {
	stop   context.CancelFunc
	wg     sync.WaitGroup
	served atomic.Int64
	failed atomic.Int64
	hung   atomic.Int64
}

func (m *machineUnderReload) ask() *requests {
	ctx, cancel := context.WithCancel(m.t.Context())
	r := &requests{stop: cancel}
	for range 3 {
		r.wg.Go(func() {
			for ctx.Err() == nil {
				var slow net.Error
				switch err := m.get("/bytes/65536", 65536); {
				case err == nil:
					r.served.Add(1)
				case errors.As(err, &slow) && slow.Timeout():
					r.hung.Add(1)
				default:
					r.failed.Add(1)
				}
			}
		})
	}
	return r
}

// TestReload replaces the device of a running machine by one with a firmware package
// from outside the tree, and by one that does not start; has it panic, and kills it.
// Machine and driver go on, and each request is served or fails.
func TestReload(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine, some seconds: run without -short")
	}
	m := upForReload(t)
	m.answers()
	if n := m.generation(); n != 1 {
		t.Errorf("generation %d", n)
	}
	flow := m.ask()
	defer flow.wg.Wait()
	defer flow.stop()
	p := Paths{State: filepath.Dir(filepath.Dir(m.Dir))}
	paths := func() string {
		program, err := NewFirmware(p, m.Record)
		if err != nil {
			t.Fatal(err)
		}
		return program
	}

	program := paths()
	source, err := FindSource()
	if err != nil {
		t.Fatal(err)
	}
	if err := devbuild.Build(t.Context(), devbuild.Config{Source: source, Firmware: "./testdata/fragile"}, program); err != nil {
		t.Fatal(err)
	}
	done, err := SendLoad(t.Context(), m.Record, Load{Program: program, Name: "fragile"}, nobody)
	if err != nil || done.Error != "" || done.Generation != 2 {
		t.Fatalf("load: %+v, %v", done, err)
	}
	m.answers()
	if s := m.exec("toebox-guest", "attr", "FIRMWARE"); !strings.Contains(s, "fragile 1.0") {
		t.Errorf("the guest sees %s", s)
	}

	die := func(sig syscall.Signal, says string) {
		t.Helper()
		if err := syscall.Kill(m.devices[0].kept.pidNow(), sig); err != nil {
			t.Fatal(err)
		}
		m.told.wait(t, says)
		m.answers()
	}
	die(syscall.SIGUSR1, "panic: fragile: asked to")
	m.told.wait(t, "generation 3 serves")
	die(syscall.SIGKILL, "signal: killed")
	m.told.wait(t, "generation 4 serves")

	program = paths()
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho cannot >&2\nexit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	done, err = SendLoad(t.Context(), m.Record, Load{Program: program, Name: "broken"}, nobody)
	if err != nil || !strings.Contains(done.Error, "exit status 7: cannot") {
		t.Errorf("load what does not start: %+v, %v", done, err)
	}
	m.answers()
	if s := m.exec("toebox-guest", "attr", "FIRMWARE"); !strings.Contains(s, "fragile 1.0") {
		t.Errorf("after a load that failed the guest sees %s", s)
	}
	last := m.generation()
	if last < 6 {
		t.Errorf("generation %d", last)
	}
	var resets int
	for line := range strings.Lines(m.exec("toebox-guest", "stats")) {
		fmt.Sscanf(line, "driver.resets %d", &resets)
	}
	if resets < 4 {
		t.Errorf("the driver has seen %d resets", resets)
	}

	flow.stop()
	flow.wg.Wait()
	if flow.hung.Load() != 0 || flow.served.Load() == 0 {
		t.Errorf("%d requests served, %d failed, %d hung", flow.served.Load(), flow.failed.Load(), flow.hung.Load())
	}
	t.Logf("%d requests served, %d failed; the last load took %v", flow.served.Load(), flow.failed.Load(), done.Took)
	m.Close()
	if err := m.Wait(); err != nil {
		t.Errorf("the machine: %v", err)
	}
	if n := sections(t, m.capture); n < 4 {
		t.Errorf("the capture has %d sections", n)
	}
	if left, _ := filepath.Glob(filepath.Join(m.Dir, "firmware-*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// sections walks a capture to its end (draft-ietf-opsawg-pcapng, section 3.1) and
// counts its sections.
func sections(t *testing.T, path string) (n int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; len(b) > 0; {
		if len(b) < 12 {
			t.Fatalf("capture: %d bytes at %d are no block", len(b), at)
		}
		size := int(binary.LittleEndian.Uint32(b[4:]))
		if size < 12 || size > len(b) || int(binary.LittleEndian.Uint32(b[size-4:])) != size {
			t.Fatalf("capture: the block at %d is not whole", at)
		}
		if binary.LittleEndian.Uint32(b) == 0x0a0d0d0a {
			n++
		}
		at, b = at+size, b[size:]
	}
	return n
}

// TestKeeperDies: without its keeper there is no device, and the run says so.
func TestKeeperDies(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine, some seconds: run without -short")
	}
	m := upForReload(t)
	if err := syscall.Kill(m.devices[0].proc.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(); !errors.Is(err, ErrDevice) || ExitCode(err) != ExitCrashed {
		t.Errorf("ended: %v", err)
	}
}

// TestNeverServes: a device that cannot start ends the run, with its own words.
func TestNeverServes(t *testing.T) {
	if testing.Short() {
		t.Skip("starts QEMU, a second or two: run without -short")
	}
	_, err := tryForReload(t, "nat:bogus")
	if !errors.Is(err, ErrDevice) || ExitCode(err) != ExitCrashed || !strings.Contains(err.Error(), `"bogus" is no forward`) {
		t.Errorf("up: %v", err)
	}
}
