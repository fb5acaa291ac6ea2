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

// A Load asks a run to have another device program serve one of its adapters.
type Load struct {
	Program string `json:"program"` // of NewFirmware
	Name    string `json:"name"`    // for people
	Adapter int    `json:"adapter,omitempty"`
}

// Loaded says what became of a Load.
type Loaded struct {
	Error      string        `json:"error,omitempty"` // why the firmware before serves on
	Generation uint32        `json:"generation"`
	Took       time.Duration `json:"took"` // from the request until the machine was served again
}

// A loadLine is what a run answers: at last what became of a load, and before that
// where it stands.
type loadLine struct {
	State string `json:"state,omitempty"` // loadWaits, loadBegins; "": Loaded
	Loaded
}

const (
	loadWaits  = "waits"  // for another
	loadBegins = "begins" // has its turn
)

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
	r := bufio.NewReaderSize(conn, maxLoadLine)
	line, err := r.ReadSlice('\n')
	var q Load
	if err == nil {
		err = json.Unmarshal(line, &q)
	}
	var a Loaded
	if err == nil {
		// Whoever has gone wants nothing loaded any more: its turn passes.
		ctx, cancel := context.WithCancel(ld.ctx)
		defer cancel()
		conn.SetReadDeadline(time.Time{}) //nolint:errcheck // the read tells
		ld.wg.Go(func() {
			r.ReadByte() //nolint:errcheck // nothing more is asked
			cancel()
		})
		a, err = ld.i.load(ctx, ld.ctx, q, func(state string) { send(conn, loadLine{State: state}) })
	}
	if err != nil {
		a.Error = err.Error()
	}
	send(conn, loadLine{Loaded: a})
}

// send sends a line, to a client that may have gone.
func send(conn net.Conn, l loadLine) {
	b, err := json.Marshal(l)
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
// it cannot, the one before does again. One load is under way at a time; others wait
// for it.
func (i *Instance) Load(ctx context.Context, q Load) (Loaded, error) {
	return i.load(ctx, ctx, q, func(string) {})
}

// load is Load. It waits for its turn until wait ends, and then for the keeper, which
// takes back no order, until ctx does. state is told how it gets on.
func (i *Instance) load(wait, ctx context.Context, q Load, state func(string)) (Loaded, error) {
	if len(i.devices) == 0 {
		return Loaded{}, errors.New("this machine runs without an adapter")
	}
	if q.Adapter < 0 || q.Adapter >= len(i.devices) || i.devices[q.Adapter].kept == nil {
		return Loaded{}, fmt.Errorf("this machine has no adapter %d", q.Adapter)
	}
	dir := filepath.Dir(q.Program)
	if filepath.Dir(dir) != filepath.Clean(i.Dir) || !strings.HasPrefix(filepath.Base(dir), firmwarePrefix) {
		return Loaded{}, fmt.Errorf("%q is no program in the folder of this run", q.Program)
	}
	if st, err := os.Lstat(q.Program); err != nil || !st.Mode().IsRegular() {
		return Loaded{}, fmt.Errorf("%q is no program", q.Program)
	}
	k := i.devices[q.Adapter].kept
	if err := k.take(wait, func() { state(loadWaits) }); err != nil {
		return Loaded{}, err
	}
	defer k.release()
	state(loadBegins)
	begin := time.Now()
	r, err := k.replace(ctx, q.Program)
	a := Loaded{Generation: r.Generation, Took: time.Since(begin)}
	if err != nil {
		k.say("%s: %s could not take over (%v); the firmware before goes on", k.name, q.Name, err)
		return a, err
	}
	k.say("%s: %s serves as generation %d after %d ms", k.name, q.Name, a.Generation, a.Took.Milliseconds())
	return a, nil
}

// SendLoad asks a run to load firmware. An error of the firmware is in the answer.
// waits is called if another load is under way, which this one waits for.
func SendLoad(ctx context.Context, r Record, q Load, waits func()) (Loaded, error) {
	d := net.Dialer{Timeout: dialPatience}
	conn, err := d.DialContext(ctx, "unix", r.LoadSocket())
	if errors.Is(err, os.ErrNotExist) {
		return Loaded{}, errors.New("the machine runs without an adapter, or is not up yet")
	}
	if err != nil {
		return Loaded{}, fmt.Errorf("rig: %w", err)
	}
	defer conn.Close()                                      //nolint:errcheck // said all
	stop := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // unblocks
	defer stop()
	b, err := json.Marshal(q)
	if err == nil {
		conn.SetWriteDeadline(time.Now().Add(sendPatience)) //nolint:errcheck // the write tells
		_, err = conn.Write(append(b, '\n'))
	}
	var a Loaded
	if err == nil {
		a, err = awaitLoaded(conn, waits)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return Loaded{}, fmt.Errorf("rig: load: %w", err)
	}
	return a, nil
}

// awaitLoaded reads what becomes of a load. Each state of it has its own limit.
func awaitLoaded(conn net.Conn, waits func()) (Loaded, error) {
	const states = 2 // before the answer, at the most
	lines := bufio.NewReaderSize(conn, maxReport)
	patience := orderPatience + dialPatience
	for range states + 1 {
		conn.SetReadDeadline(time.Now().Add(patience)) //nolint:errcheck // the read tells
		line, err := lines.ReadSlice('\n')
		var l loadLine
		if err == nil {
			err = json.Unmarshal(line, &l)
		}
		if err != nil || l.State == "" {
			return l.Loaded, err
		}
		if patience = orderPatience + dialPatience; l.State == loadWaits {
			patience = turnPatience + dialPatience
			waits()
		}
	}
	return Loaded{}, errors.New("the run comes to no answer")
}
