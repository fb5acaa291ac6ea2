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
	"sort"
	"time"

	"toebox/images/control"
)

const (
	keepRuns     = 20
	instanceFile = "instance.json"
	latest       = "latest"
	clientSocket = "toebox" // for other toebox processes
	dialPatience = 5 * time.Second
)

// A Record describes a run to other processes.
type Record struct {
	ID      string `json:"id"`
	PID     int    `json:"pid"`
	Sockets string `json:"sockets"`        // directory
	Port    int    `json:"port,omitempty"` // of the host, forwarded
}

// Socket returns the path other processes connect to.
func (r Record) Socket() string { return filepath.Join(r.Sockets, clientSocket) }

// StatsSocket returns the path of the device's HTTP interface.
func (r Record) StatsSocket() string { return filepath.Join(r.Sockets, statsSocket) }

// newRun makes the folder of a run and its directory for sockets.
func newRun(p Paths, now time.Time) (dir string, r Record, err error) {
	var salt [3]byte
	rand.Read(salt[:]) //nolint:errcheck // never fails
	r = Record{ID: now.UTC().Format("20060102-150405-") + hex.EncodeToString(salt[:]), PID: os.Getpid()}
	runs := filepath.Join(p.State, "runs")
	dir = filepath.Join(runs, r.ID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", r, fmt.Errorf("rig: %w", err)
	}
	if r.Sockets, err = os.MkdirTemp(p.Runtime, "toebox-"); err != nil {
		return "", r, fmt.Errorf("rig: %w", err)
	}
	// A link is replaced by renaming, so that there always is one.
	tmp := filepath.Join(runs, "."+r.ID)
	if os.Symlink(r.ID, tmp) == nil && os.Rename(tmp, filepath.Join(runs, latest)) != nil {
		os.Remove(tmp) //nolint:errcheck // a nicety
	}
	pruneRuns(runs)
	return dir, r, nil
}

// pruneRuns removes the oldest folders of runs that are over.
func pruneRuns(runs string) {
	ids := runIDs(runs)
	for _, id := range ids[min(len(ids), keepRuns):] {
		dir := filepath.Join(runs, id)
		if r, err := readRecord(dir); err == nil && reachable(r) {
			continue
		}
		os.RemoveAll(dir) //nolint:errcheck // only wasted space if it stays
	}
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

func (r Record) write(dir string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("rig: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, instanceFile), b, 0o644); err != nil {
		return fmt.Errorf("rig: %w", err)
	}
	return nil
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

// ErrNotRunning says that there is no machine to talk to.
var ErrNotRunning = errors.New("no toebox is running: start one with `make run` (or `toebox run`)")

// Running returns the newest instance that answers.
func Running(p Paths) (Record, error) {
	runs := filepath.Join(p.State, "runs")
	for _, id := range runIDs(runs) {
		if r, err := readRecord(filepath.Join(runs, id)); err == nil && reachable(r) {
			return r, nil
		}
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
