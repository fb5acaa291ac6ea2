// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"toebox/images/rig"
)

// patience bounds a wait for what has to come.
const patience = 60 * time.Second

// A told is what a command prints, to be waited for.
type told struct {
	mu   sync.Mutex
	text bytes.Buffer
	news chan struct{} // closed with the next write
}

func newTold() *told { return &told{news: make(chan struct{})} }

func (o *told) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.news)
	o.news = make(chan struct{})
	return o.text.Write(p)
}

func (o *told) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// wait waits until text was printed so many times.
func (o *told) wait(t *testing.T, times int, text string) {
	t.Helper()
	for deadline := time.After(patience); ; {
		o.mu.Lock()
		all, news := o.text.String(), o.news
		o.mu.Unlock()
		if strings.Count(all, text) >= times {
			return
		}
		select {
		case <-news:
		case <-deadline:
			t.Fatalf("not %d times %q, but\n%s", times, text, all)
		}
	}
}

// A machine is a run that the test plays: its folder, and the sockets of its process
// and its device.
type machine struct {
	t      *testing.T
	record rig.Record
	dir    string
	lock   *os.File
	took   chan string // what each program printed that was to be loaded

	mu     sync.Mutex
	before string                      // lines ahead of the answer
	answer func(q rig.Load) rig.Loaded // nil: it serves as the next generation
	device rig.Loaded                  // of the last that serves
	stats  http.HandlerFunc            // nil: of device, with a request answered
	page   http.HandlerFunc            // nil: a page
}

// set changes how the machine behaves.
func (m *machine) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// newMachine starts one in the folders that isolate has set.
func newMachine(t *testing.T, id string) *machine {
	t.Helper()
	paths, err := rig.DefaultPaths()
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "toebox-") // short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	m := &machine{t: t, dir: filepath.Join(paths.State, "runs", id), took: make(chan string, 64), device: rig.Loaded{Generation: 1}}
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		serve := m.page
		m.mu.Unlock()
		if serve != nil {
			serve(w, r)
		}
	}))
	t.Cleanup(page.Close)
	m.record = rig.Record{ID: id, PID: os.Getpid(), Sockets: sockets, Port: page.Listener.Addr().(*net.TCPAddr).Port}
	b, err := json.Marshal(m.record)
	if err == nil {
		err = os.MkdirAll(m.dir, 0o755)
	}
	if err == nil {
		m.lock, err = os.Create(filepath.Join(m.dir, "instance.json"))
	}
	if err == nil {
		_, err = m.lock.Write(b)
	}
	if err == nil {
		err = syscall.Flock(int(m.lock.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.lock.Close() })
	m.listen(m.record.Socket(), func(net.Conn) {})
	m.listen(m.record.LoadSocket(), m.load)
	l := m.socket(m.record.StatsSocket(0))
	stats := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(m.serveStats)}}
	stats.Start()
	t.Cleanup(stats.Close)
	return m
}

func (m *machine) socket(path string) net.Listener {
	m.t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		m.t.Fatal(err)
	}
	return l
}

// listen serves connections, each in a goroutine, until the test ends.
func (m *machine) listen(path string, serve func(net.Conn)) {
	m.t.Helper()
	l := m.socket(path)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	m.t.Cleanup(func() { l.Close(); wg.Wait() })
}

// load plays the run of a load: it has the program say what it was built from.
func (m *machine) load(conn net.Conn) {
	var q rig.Load
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &q)
	}
	if err != nil {
		return // a client that was ended
	}
	printed, err := exec.Command(q.Program).CombinedOutput()
	if err != nil {
		m.t.Errorf("the program: %v, %s", err, printed)
	}
	m.took <- strings.TrimSpace(string(printed))
	m.mu.Lock()
	answer, before := m.answer, m.before
	m.mu.Unlock()
	io.WriteString(conn, before)
	a := rig.Loaded{Generation: m.generation() + 1, Took: time.Millisecond}
	if answer != nil {
		a = answer(q)
	}
	if a.Error == "" {
		m.set(func() { m.device = a })
	}
	json.NewEncoder(conn).Encode(a)
}

func (m *machine) generation() uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.device.Generation
}

func (m *machine) serveStats(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	serve := m.stats
	m.mu.Unlock()
	if serve == nil {
		serve = statistics(m.generation(), 1)
	}
	serve(w, r)
}

// statistics are those of a device that has answered so many requests.
func statistics(generation uint32, responses int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"generation":%d,"counters":{"responses":%d}}`, generation, responses)
	}
}

// next waits for a program to be loaded and returns what it was built from.
func (m *machine) next() string {
	m.t.Helper()
	select {
	case s := <-m.took:
		return s
	case <-time.After(patience):
		m.t.Fatal("nothing is loaded")
		return ""
	}
}

// unloaded checks that nothing was loaded, and that what was built for it is gone.
func (m *machine) unloaded() {
	m.t.Helper()
	select {
	case s := <-m.took:
		m.t.Errorf("%q was loaded", s)
	default:
	}
	m.tidy()
}

func (m *machine) tidy() {
	m.t.Helper()
	if left, err := filepath.Glob(filepath.Join(m.dir, "firmware-*")); err != nil || len(left) > 0 {
		m.t.Errorf("left in the run's folder: %q, %v", left, err)
	}
}

// A tree is a module with the packages that the device process is built from, as
// small as can be: the program prints what the firmware is.
type tree struct {
	t    *testing.T
	root string
}

const (
	goodFirmware   = "package firmware\n\ntype Config struct{}\n\nfunc New(Config) string { return %q }\n"
	brokenFirmware = "package firmware\n\ntype Config struct{}\n\nfunc New(Config) string { return undefinedThing }\n"
)

// newTree makes one and has the commands find it; it also keeps a test away from the
// machine's own settings.
func newTree(t *testing.T) *tree {
	t.Helper()
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv(name, strings.TrimSpace(string(out)))
	}
	isolate(t)
	// The go command counts in the background what it does, unless it is told not to.
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	(&tree{t: t, root: config}).write("go/telemetry/mode", "off")
	tr := &tree{t: t, root: filepath.Join(t.TempDir(), "a tree")}
	tr.write("go.mod", "module toebox\n\ngo 1.26\n")
	tr.write("go.sum", "")
	tr.write("vdev/vdev.go", "package vdev\n\ntype (\n\tFirmware = string\n\tCounters = int\n)\n")
	tr.write("vdev/cmd/toebox-device/main.go", "package main\n\nimport \"toebox/firmware\"\n\nfunc main() { f, _ := newFirmware(firmware.Config{}); println(f) }\n")
	tr.write("vdev/cmd/toebox-device/firmware.go", "package main\n\nimport (\n\t\"toebox/firmware\"\n\t\"toebox/vdev\"\n)\n\n"+
		"func newFirmware(c firmware.Config) (vdev.Firmware, vdev.Counters) { return firmware.New(c), 0 }\n")
	tr.write("images/cmd/toebox/main.go", "package main\n\nimport (\n\t\"os\"\n\n\t\"toebox/firmware\"\n)\n\n"+
		"func main() {\n\tf := firmware.New(firmware.Config{})\n\tprintln(f, \"is tested by\", os.Args[5])\n\tif f == \"fails\" {\n\t\tos.Exit(1)\n\t}\n}\n")
	tr.firmware("first")
	t.Setenv("TOEBOX_SOURCE", tr.root)
	return tr
}

// write saves a file as editors do, which is one event.
func (tr *tree) write(name, text string) {
	tr.t.Helper()
	path := filepath.Join(tr.root, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path+"~", []byte(text), 0o644)
	}
	if err == nil {
		err = os.Rename(path+"~", path)
	}
	if err != nil {
		tr.t.Fatal(err)
	}
}

func (tr *tree) firmware(version string) {
	tr.t.Helper()
	tr.write("firmware/firmware.go", fmt.Sprintf(goodFirmware, version))
}

// A command runs in this process, as run does, but for signals of the test's own.
type command struct {
	t       *testing.T
	out     *told
	signals chan os.Signal
	ended   chan int // exit status
}

// begin starts verb, what kong would call.
func begin(t *testing.T, verb interface{ Run(*app) error }) *command {
	t.Helper()
	paths, err := rig.DefaultPaths()
	if err != nil {
		t.Fatal(err)
	}
	c := &command{t: t, out: newTold(), signals: make(chan os.Signal, 1), ended: make(chan int, 1)}
	a := &app{common: &Common{}, paths: paths, report: newReporter(c.out), stdout: c.out, stderr: c.out, signals: c.signals}
	go func() { c.ended <- a.explain(verb.Run(a)) }()
	return c
}

// interrupt types Ctrl-C and waits for the end.
func (c *command) interrupt() (status int) {
	c.t.Helper()
	c.signals <- os.Interrupt
	return c.end()
}

// end waits for the command and returns its exit status.
func (c *command) end() (status int) {
	c.t.Helper()
	select {
	case status = <-c.ended:
	case <-time.After(patience):
		c.t.Fatalf("it goes on:\n%s", c.out)
	}
	return status
}

// stall has the go command stand still when its arguments match a pattern of the
// shell. It returns a channel that gets a value each time that it does.
func stall(t *testing.T, pattern string) <-chan struct{} {
	t.Helper()
	real, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\ncase \"$*\" in " + pattern + ") echo >" + strconv.Quote(fifo) + "; exec sleep 600;; esac\nexec " + strconv.Quote(real) + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	f, err := os.OpenFile(fifo, os.O_RDWR, 0) // open for writing, too: there is no end
	if err != nil {
		t.Fatal(err)
	}
	stalls := make(chan struct{}, 64)
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 1)
		for {
			if _, err := io.ReadFull(f, b); err != nil {
				return
			}
			stalls <- struct{}{}
		}
	})
	t.Cleanup(func() { f.Close(); wg.Wait() })
	return stalls
}

// reached waits for a phase.
func (c *command) reached(phase <-chan struct{}) {
	c.t.Helper()
	select {
	case <-phase:
	case status := <-c.ended:
		c.t.Fatalf("ended with %d:\n%s", status, c.out)
	case <-time.After(patience):
		c.t.Fatalf("never got there:\n%s", c.out)
	}
}

// hang is a handler that tells when it is asked, and never answers.
func hang(asked chan<- struct{}) http.HandlerFunc {
	return func(_ http.ResponseWriter, r *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-r.Context().Done()
	}
}
