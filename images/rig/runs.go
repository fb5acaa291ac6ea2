// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"toebox/images/control"
)

const (
	keepRuns     = 20
	instanceFile = "instance.json"
	latest       = "latest"
	clientSocket = "toebox" // for other toebox processes
	loadSocket   = "load"   // for those that bring firmware
	socketPrefix = "toebox-"
	dialPatience = 5 * time.Second
)

// A Record describes a run to other processes.
type Record struct {
	ID      string `json:"id"`
	PID     int    `json:"pid"`
	Sockets string `json:"sockets"`        // directory
	Port    int    `json:"port,omitempty"` // of the host, forwarded

	Adapters int `json:"adapters,omitempty"`
}

// Socket returns the path other processes connect to.
func (r Record) Socket() string { return filepath.Join(r.Sockets, clientSocket) }

// StatsSocket returns the path of the HTTP interface of an adapter's device.
func (r Record) StatsSocket(adapter int) string {
	return filepath.Join(socketsOf(r.Sockets, adapter), statsSocket)
}

// Has says that the run has that adapter; else how to name one.
func (r Record) Has(adapter int) error {
	// The first one is looked for: a run without may have just begun.
	if adapter == 0 || adapter > 0 && adapter < r.Adapters {
		return nil
	}
	return &UsageError{Text: fmt.Sprintf("--adapter %d: the machine has %d, counted from 0", adapter, r.Adapters)}
}

// socketsOf is the directory, below a run's for sockets, with those of an adapter.
func socketsOf(dir string, adapter int) string {
	if adapter == 0 {
		return dir
	}
	return filepath.Join(dir, strconv.Itoa(adapter))
}

// LoadSocket returns the path where firmware is taken.
func (r Record) LoadSocket() string { return filepath.Join(r.Sockets, loadSocket) }

// A folder is a run's folder while the run lasts. Its process holds a lock on the
// record, which the kernel drops when the process dies: that is how others know.
type folder struct {
	Record
	dir  string
	lock *os.File
}

// newRun makes the folder of a run and its directory for sockets, and cleans up after
// runs that were killed.
func newRun(p Paths, now time.Time, port, adapters int) (f *folder, err error) {
	var salt [3]byte
	rand.Read(salt[:]) //nolint:errcheck // never fails
	f = &folder{Record: Record{ID: now.UTC().Format("20060102-150405-") + hex.EncodeToString(salt[:]), PID: os.Getpid(), Port: port, Adapters: adapters}}
	runs := filepath.Join(p.State, "runs")
	f.dir = filepath.Join(runs, f.ID)
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return nil, fmt.Errorf("rig: %w", err)
	}
	if f.Sockets, err = os.MkdirTemp(p.Runtime, socketPrefix); err != nil {
		return nil, fmt.Errorf("rig: %w", err)
	}
	if err := f.record(); err != nil {
		os.RemoveAll(f.Sockets) //nolint:errcheck // the other error is the one to tell
		return nil, fmt.Errorf("rig: %w", err)
	}
	// A link is replaced by renaming, so that there always is one.
	tmp := filepath.Join(runs, "."+f.ID)
	if os.Symlink(f.ID, tmp) == nil && os.Rename(tmp, filepath.Join(runs, latest)) != nil {
		os.Remove(tmp) //nolint:errcheck // a nicety
	}
	tidy(runs)
	return f, nil
}

// record writes and locks the record.
func (f *folder) record() error {
	b, err := json.Marshal(f.Record)
	if err != nil {
		return err
	}
	if f.lock, err = os.OpenFile(filepath.Join(f.dir, instanceFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
		return err
	}
	if err := unix.Flock(int(f.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	_, err = f.lock.Write(b)
	return err
}

// close ends the run; its logs stay.
func (f *folder) close() {
	os.RemoveAll(f.Sockets)                       //nolint:errcheck // only wasted space if it stays
	os.Remove(filepath.Join(f.dir, instanceFile)) //nolint:errcheck // as above
	dropFirmware(f.dir)
	f.lock.Close() //nolint:errcheck // drops the lock
}

// tidy removes what killed runs left, and the oldest folders.
func tidy(runs string) {
	for n, id := range runIDs(runs) {
		dir := filepath.Join(runs, id)
		if alive(dir) {
			continue
		}
		if r, err := readRecord(dir); err == nil {
			// The record is a file anybody may have edited: remove only what looks like ours.
			if filepath.IsAbs(r.Sockets) && strings.HasPrefix(filepath.Base(r.Sockets), socketPrefix) {
				os.RemoveAll(r.Sockets) //nolint:errcheck // only wasted space if it stays
			}
			os.Remove(filepath.Join(dir, instanceFile)) //nolint:errcheck // as above
			dropFirmware(dir)
		}
		if n >= keepRuns {
			os.RemoveAll(dir) //nolint:errcheck // as above
		}
	}
}

// alive says whether the process of a run lives.
func alive(dir string) bool {
	f, err := os.Open(filepath.Join(dir, instanceFile))
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // drops the lock, too
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// runIDs lists runs, the newest first.
func runIDs(runs string) []string {
	entries, err := os.ReadDir(runs)
	if err != nil {
		return nil
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() {
			ids = append(ids, e.Name())
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(ids)))
	return ids
}

func readRecord(dir string) (Record, error) {
	var r Record
	b, err := os.ReadFile(filepath.Join(dir, instanceFile))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}

func reachable(r Record) bool {
	conn, err := net.DialTimeout("unix", r.Socket(), dialPatience)
	if err != nil {
		return false
	}
	conn.Close() //nolint:errcheck // nothing was said
	return true
}

// Busy says whether any run lives, be it one that does not answer yet.
func Busy(p Paths) bool {
	runs := filepath.Join(p.State, "runs")
	return slices.ContainsFunc(runIDs(runs), func(id string) bool { return alive(filepath.Join(runs, id)) })
}

// ErrNotRunning says that there is no machine to talk to.
var ErrNotRunning = errors.New("no toebox is running: start one with `make run` (or `toebox run`)")

// Running returns the newest instance that answers.
func Running(p Paths) (Record, error) { return Find(p, "") }

// Find returns the newest instance that answers and whose id ends in suffix.
func Find(p Paths, suffix string) (Record, error) {
	runs := filepath.Join(p.State, "runs")
	for _, id := range runIDs(runs) {
		if !strings.HasSuffix(id, suffix) || !alive(filepath.Join(runs, id)) {
			continue
		}
		if r, err := readRecord(filepath.Join(runs, id)); err == nil && reachable(r) {
			return r, nil
		}
	}
	if suffix != "" {
		return Record{}, fmt.Errorf("rig: no run %s is up: %w", suffix, ErrNotRunning)
	}
	return Record{}, ErrNotRunning
}

// Dial opens a session with an instance; its requests go to the guest.
func Dial(ctx context.Context, r Record) (*control.Session, error) {
	d := net.Dialer{Timeout: dialPatience}
	conn, err := d.DialContext(ctx, "unix", r.Socket())
	if err != nil {
		return nil, fmt.Errorf("rig: %w", err)
	}
	return control.New(conn, control.Config{Role: control.Host}), nil
}
