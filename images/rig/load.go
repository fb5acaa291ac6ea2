// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Firmware comes as a device program in a directory of its own in the run's folder.
const (
	firmwarePrefix = "firmware-"
	maxLoadLine    = 64 << 10
	maxLoaders     = 32
	loadRead       = 10 * time.Second
)

// A Load asks a run to have another device program serve its adapter.
type Load struct {
	Program string `json:"program"` // of NewFirmware
	Name    string `json:"name"`    // for people
}

// Loaded says what became of a Load.
type Loaded struct {
	Error      string        `json:"error,omitempty"` // why the firmware before serves on
	Generation uint32        `json:"generation"`
	Took       time.Duration `json:"took"` // from the request until the machine was served again
}

// NewFirmware makes a place in a run's folder for a device program to be loaded. It
// is the run's once it was loaded; until then remove its directory.
func NewFirmware(p Paths, r Record) (string, error) {
	dir, err := os.MkdirTemp(filepath.Join(p.State, "runs", r.ID), firmwarePrefix)
	if err != nil {
		return "", fmt.Errorf("rig: %w", err)
	}
	return filepath.Join(dir, deviceProgram), nil
}

// adopt keeps the program that a run starts with, whatever is built meanwhile.
func (i *Instance) adopt(program string) (string, error) {
	dir, err := os.MkdirTemp(i.Dir, firmwarePrefix)
	if err != nil {
		return "", fmt.Errorf("rig: %w", err)
	}
	to := filepath.Join(dir, deviceProgram)
	if os.Link(program, to) == nil {
		return to, nil
	}
	from, err := os.Open(program)
	if err != nil {
		return "", fmt.Errorf("rig: %w", err)
	}
	defer from.Close() //nolint:errcheck // read only
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return "", fmt.Errorf("rig: %w", err)
	}
	_, err = io.Copy(f, from)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("rig: %w", err)
	}
	return to, nil
}

// dropFirmware removes the programs of a run that is over.
func dropFirmware(dir string) {
	all, err := filepath.Glob(filepath.Join(globQuote(dir), firmwarePrefix+"*"))
	if err != nil {
		return
	}
	for _, d := range all {
		os.RemoveAll(d) //nolint:errcheck // only wasted space if it stays
	}
}

// globQuote quotes what filepath.Glob would take for patterns.
func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// A loader takes firmware from other toebox processes.
type loader struct {
	i     *Instance
	l     *net.UnixListener
	slots chan struct{}
	wg    sync.WaitGroup
	ctx   context.Context // ends with close
	stop  context.CancelFunc
}

func newLoader(i *Instance) (*loader, error) {
	l, err := ListenSocket(i.LoadSocket())
	if err != nil {
		return nil, err
	}
	// The directory is the user's alone already.
	if err := os.Chmod(i.LoadSocket(), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("rig: %w", err), l.Close())
	}
	ld := &loader{i: i, l: l, slots: make(chan struct{}, maxLoaders)}
	ld.ctx, ld.stop = context.WithCancel(context.Background())
	ld.wg.Go(ld.accept)
	return ld, nil
}

func (ld *loader) accept() {
	for {
		conn, err := ld.l.Accept()
		if err != nil {
			return
		}
		select {
		case ld.slots <- struct{}{}:
		default:
			conn.Close() //nolint:errcheck // refused
			continue
		}
		ld.wg.Go(func() {
			stop := context.AfterFunc(ld.ctx, func() { conn.Close() }) //nolint:errcheck // unblocks
			ld.serve(conn)
			stop()
			conn.Close() //nolint:errcheck // said all
			<-ld.slots
		})
	}
}

func (ld *loader) serve(conn net.Conn) {
	conn.SetReadDeadline(time.Now().Add(loadRead)) //nolint:errcheck // the read tells
	line, err := bufio.NewReaderSize(conn, maxLoadLine).ReadSlice('\n')
	var q Load
	if err == nil {
		err = json.Unmarshal(line, &q)
	}
	var a Loaded
	if err == nil {
		a, err = ld.i.Load(ld.ctx, q)
	}
	if err != nil {
		a.Error = err.Error()
	}
	b, err := json.Marshal(a)
	if err != nil {
		return
	}
	conn.SetWriteDeadline(time.Now().Add(sendPatience)) //nolint:errcheck // the write tells
	conn.Write(append(b, '\n'))                         //nolint:errcheck // the client has gone
}

func (ld *loader) close() {
	ld.stop()
	ld.l.Close() //nolint:errcheck // ends accept and removes the socket
	ld.wg.Wait()
}

// Load has a program of NewFirmware serve the adapter while the machine goes on. When
// it cannot, the one before does again.
func (i *Instance) Load(ctx context.Context, q Load) (Loaded, error) {
	if i.device == nil || i.device.kept == nil {
		return Loaded{}, errors.New("this machine runs without an adapter")
	}
	dir := filepath.Dir(q.Program)
	if filepath.Dir(dir) != filepath.Clean(i.Dir) || !strings.HasPrefix(filepath.Base(dir), firmwarePrefix) {
		return Loaded{}, fmt.Errorf("%q is no program in the folder of this run", q.Program)
	}
	if st, err := os.Lstat(q.Program); err != nil || !st.Mode().IsRegular() {
		return Loaded{}, fmt.Errorf("%q is no program", q.Program)
	}
	begin := time.Now()
	r, err := i.device.kept.replace(ctx, q.Program)
	a := Loaded{Generation: r.Generation, Took: time.Since(begin)}
	say := i.device.kept.say
	if err != nil {
		say("adapter: %s could not take over (%v); the firmware before goes on", q.Name, err)
		return a, err
	}
	say("adapter: %s serves as generation %d after %d ms", q.Name, a.Generation, a.Took.Milliseconds())
	return a, nil
}

// SendLoad asks a run to load firmware. An error of the firmware is in the answer.
func SendLoad(ctx context.Context, r Record, q Load) (Loaded, error) {
	var a Loaded
	d := net.Dialer{Timeout: dialPatience}
	conn, err := d.DialContext(ctx, "unix", r.LoadSocket())
	if errors.Is(err, os.ErrNotExist) {
		return a, errors.New("the machine runs without an adapter, or is not up yet")
	}
	if err != nil {
		return a, fmt.Errorf("rig: %w", err)
	}
	defer conn.Close()                                      //nolint:errcheck // said all
	stop := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // unblocks
	defer stop()
	conn.SetDeadline(time.Now().Add(orderPatience + dialPatience)) //nolint:errcheck // the read tells
	b, err := json.Marshal(q)
	if err == nil {
		_, err = conn.Write(append(b, '\n'))
	}
	var line []byte
	if err == nil {
		line, err = bufio.NewReaderSize(conn, maxReport).ReadSlice('\n')
	}
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return a, fmt.Errorf("rig: load: %w", err)
	}
	return a, nil
}
