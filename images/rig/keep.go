// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"toebox/images/proc"
	"toebox/vfio-user/keeper"
)

// Limits of the connection to a keeper, and of what is shown of a death.
const (
	maxReport     = 1 << 20          // bytes: a trace, escaped
	orderPatience = 90 * time.Second // the keeper tries two servers, for 30 s each
	turnPatience  = 10 * time.Minute // for the orders before
	sendPatience  = 5 * time.Second
	traceLines    = 14
	loudPause     = 500 * time.Millisecond
	lasting       = 2 * time.Second // a device that served for so long did not die at once
)

// kept is the connection to the keeper of a device.
type kept struct {
	conn net.Conn
	proc *proc.Process
	args []string                         // of a device, behind its program
	name string                           // of the adapter, for people
	log  string                           // file with what keeper and devices say
	say  func(format string, args ...any) // never waits for people
	said *lines                           // behind say; nil: nothing
	done chan struct{}                    // closed when nothing more is reported

	turn    chan struct{} // holds a token while an order is under way
	answers chan keeper.Report

	mu      sync.Mutex
	waits   bool      // somebody waits for an answer
	owed    int       // answers that nobody waits for any more, which come before the next
	program string    // that serves
	pid     int       // of the device; 0: none
	since   time.Time // when it began to serve
	ready   bool      // a device has served
	died    time.Time // the last one, unasked; zero: none since the last that served
	loud    bool      // its death was said
	told    string    // what was said of its death
	words   string    // last ones of the device that died last
	deaths  int       // of those that did not last, one after another
	failure string    // why the keeper was ended
}

// startKeeper starts the keeper of an adapter, which starts the device.
func (i *Instance) startKeeper(all *Options, adapter int, parts *Parts, socket *net.UnixListener, forward *net.TCPListener) error {
	o := all.Of(adapter)
	program, err := i.adopt(filepath.Join(parts.Programs, deviceProgram))
	if err != nil {
		return err
	}
	log := filepath.Join(i.Dir, numbered(deviceLog, adapter))
	e, err := o.equip(socketsOf(i.Sockets, adapter), log, socket, forward)
	if err != nil {
		return err
	}
	mine, its, err := socketPair()
	if err != nil {
		e.close()
		return fmt.Errorf("rig: keeper: %w", err)
	}
	defer its.Close() //nolint:errcheck // the keeper has its own
	said := newLines(o.say)
	k := &kept{
		conn: mine, args: append([]string{"--fd={fd}"}, e.args...), name: adapterName(adapter, all.adapters()), log: log, say: said.add, said: said, program: program,
		turn: make(chan struct{}, 1), answers: make(chan keeper.Report, 1), done: make(chan struct{}),
	}
	args := []string{"--socket-fd=3", "--control-fd=4"}
	for n := range e.files {
		args = append(args, fmt.Sprintf("--inherit=%d", 5+n))
	}
	cmd := exec.Command(filepath.Join(parts.Programs, keeperProgram), append(append(args, "--"), k.command(program)...)...)
	cmd.ExtraFiles = append([]*os.File{e.socket, its}, e.files...)
	d, err := e.device(cmd)
	if err != nil {
		said.close()
		return errors.Join(err, mine.Close())
	}
	k.proc = d.proc
	d.kept = k
	i.devices = append(i.devices, d)
	go k.listen()
	return nil
}

// adapterName is what an adapter among so many is called.
func adapterName(adapter, of int) string {
	if of == 1 {
		return "adapter"
	}
	return fmt.Sprintf("adapter %d", adapter)
}

// socketPair returns the two ends of a connection.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	mine, its := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	defer mine.Close() //nolint:errcheck // FileConn has a duplicate
	conn, err := net.FileConn(mine)
	if err != nil {
		return nil, nil, errors.Join(err, its.Close())
	}
	return conn, its, nil
}

func (k *kept) command(program string) []string { return append([]string{program}, k.args...) }

// listen takes the keeper's reports until it ends.
func (k *kept) listen() {
	defer close(k.done)
	lines := bufio.NewScanner(k.conn)
	lines.Buffer(nil, maxReport)
	for lines.Scan() {
		var r keeper.Report
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			continue // of a keeper that is another's
		}
		if r.Kind == keeper.KindReplaced {
			k.answer(r)
			continue
		}
		k.tell(r)
	}
}

// answer hands on what became of an order. The keeper answers in the order of the
// orders; what nobody waits for is passed over.
func (k *kept) answer(r keeper.Report) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.owed > 0:
		k.owed--
	case k.waits:
		k.waits = false
		k.answers <- r // has room: one answer for each that waits
	}
}

// tell says what happened to the device.
func (k *kept) tell(r keeper.Report) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch r.Kind {
	case keeper.EventStarted.String():
		k.pid = r.PID
	case keeper.EventReady.String():
		if !k.died.IsZero() && k.loud {
			k.say("%s: firmware generation %d serves, %d ms after the death of the one before", k.name, r.Generation, time.Since(k.died).Milliseconds())
		}
		k.ready, k.since, k.died = true, time.Now(), time.Time{}
	case keeper.EventHung.String():
		k.say("%s: the device process does not answer (%s): it is ended", k.name, r.Error)
	case keeper.EventExited.String():
		k.pid = 0
		if !r.Expected {
			k.mournLocked(r)
		} else {
			k.deaths = 0
		}
	case keeper.EventFailed.String():
		k.pid = 0
		k.mournLocked(r)
	case keeper.EventPaused.String():
		if r.Took >= loudPause {
			k.say("%s: the device process died %d times in a row; the next start is in %v (toebox fw load brings better firmware at once)", k.name, k.deaths, r.Took)
		}
	}
}

// mournLocked says how a device died that nobody told to.
func (k *kept) mournLocked(r keeper.Report) {
	how := r.Error
	if how == "" {
		how = "exit status 0"
	}
	words := lastWords(r.Trace)
	k.words = strings.TrimSuffix(how+": "+words[0], ": ")
	if !k.ready {
		// None has ever served: there is nothing to keep.
		k.failure = k.words
		go k.proc.Stop(deviceGrace)
		return
	}
	k.died = time.Now()
	if !k.since.IsZero() && time.Since(k.since) > lasting {
		k.deaths, k.told = 0, ""
	}
	k.since = time.Time{} // one that dies without having served did not last
	k.deaths++
	if !isTrace(words) {
		words = nil // a log's last line, mostly of no interest
	}
	text := fmt.Sprintf("%s\n%s", how, strings.Join(words, "\n"))
	if k.loud = k.deaths == 1 || text != k.told; !k.loud {
		return // the pauses are told
	}
	k.told = text
	k.say("%s: the device process died (generation %d, %s); the machine goes on and a new one starts; all it said is in %s", k.name, r.Generation, how, k.log)
	for _, line := range words {
		k.say("%s: | %s", k.name, line)
	}
}

func isTrace(words []string) bool {
	return len(words) > 0 && (strings.HasPrefix(words[0], "panic:") || strings.HasPrefix(words[0], "fatal error:") || strings.HasPrefix(words[0], "SIG"))
}

// lastWords returns what matters of what a device wrote at last: a Go program's trace
// from its beginning, or the last line.
func lastWords(text string) []string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for n, line := range lines {
		if isTrace([]string{line}) {
			return lines[n:min(len(lines), n+traceLines)]
		}
	}
	return lines[len(lines)-1:]
}

// take waits for the turn to give an order; release ends it. waits is called if there
// is another's to wait for.
func (k *kept) take(ctx context.Context, waits func()) error {
	select {
	case k.turn <- struct{}{}:
		return nil
	default:
	}
	waits()
	ctx, cancel := context.WithTimeoutCause(ctx, turnPatience, fmt.Errorf("other loads are still under way after %v: %w", turnPatience, context.DeadlineExceeded))
	defer cancel()
	select {
	case k.turn <- struct{}{}:
		if ctx.Err() == nil {
			return nil
		}
		k.release()
		return fmt.Errorf("rig: %w", context.Cause(ctx))
	case <-k.done:
		return ErrDevice
	case <-ctx.Done():
		return fmt.Errorf("rig: %w", context.Cause(ctx))
	}
}

func (k *kept) release() { <-k.turn }

// replace has the keeper start another program in the place of the device. The caller
// has the turn.
func (k *kept) replace(ctx context.Context, program string) (keeper.Report, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, orderPatience, fmt.Errorf("the keeper has not answered after %v: %w", orderPatience, context.DeadlineExceeded))
	defer cancel()
	b, err := json.Marshal(keeper.Order{Server: k.command(program)})
	if err != nil {
		return keeper.Report{}, err
	}
	k.mu.Lock()
	k.words = "" // from here on they are the new program's
	k.waits = true
	k.mu.Unlock()
	k.conn.SetWriteDeadline(time.Now().Add(sendPatience)) //nolint:errcheck // the write tells
	if _, err := k.conn.Write(append(b, '\n')); err != nil {
		k.mu.Lock()
		k.waits = false
		k.mu.Unlock()
		return keeper.Report{}, fmt.Errorf("rig: keeper: %w", err)
	}
	select {
	case r := <-k.answers:
		return k.replaced(program, r)
	case <-k.done:
		return keeper.Report{}, ErrDevice
	case <-ctx.Done():
	}
	k.mu.Lock()
	if k.waits {
		k.waits = false
		k.owed++
		k.mu.Unlock()
		return keeper.Report{}, fmt.Errorf("rig: %w", context.Cause(ctx))
	}
	k.mu.Unlock()
	return k.replaced(program, <-k.answers) // it came meanwhile
}

// replaced notes the answer to the order of a program.
func (k *kept) replaced(program string, r keeper.Report) (keeper.Report, error) {
	k.mu.Lock()
	old, words := k.program, k.words
	if r.Error == "" {
		k.program = program
	}
	k.mu.Unlock()
	if r.Error != "" && words != "" {
		r.Error += " (" + words + ")"
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	if filepath.Dir(old) != filepath.Dir(program) {
		os.RemoveAll(filepath.Dir(old)) //nolint:errcheck // only wasted space if it stays
	}
	return r, nil
}

// pidNow returns the process id of the device, 0 if there is none.
func (k *kept) pidNow() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pid
}

// failed reports whether the keeper was ended because no device ever served.
func (k *kept) failed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failure != ""
}

func (k *kept) close() {
	k.conn.Close() //nolint:errcheck // its other end is gone
	<-k.done
	if k.said != nil {
		k.said.close()
	}
}

// death says how the process ended.
func (d *device) death() error {
	words := lastLine(d.log.Name())
	err := d.proc.Err()
	if d.kept != nil {
		<-d.kept.done
		d.kept.mu.Lock()
		defer d.kept.mu.Unlock()
		if d.kept.failure != "" {
			return fmt.Errorf("%w before the guest could use it: %s", ErrDevice, d.kept.failure)
		}
		return fmt.Errorf("%w with its keeper (%v): %s", ErrDevice, err, words)
	}
	return fmt.Errorf("%w (%v): %s", ErrDevice, err, words)
}
