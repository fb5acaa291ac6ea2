// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"

	"toebox/images/control"
	"toebox/images/guest"
	"toebox/images/proc"
)

const (
	maxSocketPath = 107
	dialPeriod    = 5 * time.Millisecond
	stopGrace     = 3 * time.Second
	maxPhases     = 64
	maxResets     = 16
)

// Ways a machine ends that callers tell apart.
var (
	ErrPanic = errors.New("guest kernel panic")
	ErrKVM   = errors.New("KVM gave up on the guest")
	ErrQEMU  = errors.New("QEMU died")
)

// A PhaseError is a phase of the guest's start that failed.
type PhaseError struct {
	Phase string
	Text  string
}

func (e *PhaseError) Error() string { return e.Phase + ": " + e.Text }

// A VM is a running machine.
type VM struct {
	cfg     Config
	proc    *proc.Process
	mon     *monitor
	mux     control.Mux
	phases  chan guest.Phase
	resets  chan struct{} // of the machine, while Restarted has not seen them
	console *console
	errs    *console
	done    chan struct{} // closed when QEMU is gone and the verdict stands

	mu       sync.Mutex
	session  *control.Session
	verdict  error
	noticed  bool // verdict is set
	stopping bool
	shutdown string // reason of QEMU's SHUTDOWN event
}

// Start starts QEMU and connects to it. Handlers serve what the guest asks of the
// host. The machine outlives ctx, which bounds the start only.
func Start(ctx context.Context, c Config, handlers control.Mux) (*VM, error) {
	sockets := slices.Clone(c.Devices)
	for _, name := range []string{qmpSocket, controlSocket, DeviceSocket} {
		sockets = append(sockets, filepath.Join(c.SocketDir, name))
	}
	for _, p := range sockets {
		if len(p) > maxSocketPath {
			return nil, fmt.Errorf("vm: socket path %s is longer than %d bytes: set XDG_RUNTIME_DIR or TMPDIR to a shorter one", p, maxSocketPath)
		}
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "cmdline"), []byte(c.CommandLine()+"\n"), 0o644); err != nil {
		return nil, fmt.Errorf("vm: %w", err)
	}
	consoleLog, err := os.Create(filepath.Join(c.Dir, "console.log"))
	if err != nil {
		return nil, fmt.Errorf("vm: %w", err)
	}
	qemuLog, err := os.Create(filepath.Join(c.Dir, "qemu.log"))
	if err != nil {
		consoleLog.Close() //nolint:errcheck // nothing written
		return nil, fmt.Errorf("vm: %w", err)
	}
	v := &VM{cfg: c, phases: make(chan guest.Phase, maxPhases), resets: make(chan struct{}, maxResets), done: make(chan struct{})}
	gaveUp, once := make(chan struct{}), sync.Once{}
	v.console = newConsole(consoleLog, func(line string) {
		if why, ok := panicText(line); ok {
			v.notice(fmt.Errorf("%w: %s", ErrPanic, why))
			if c.Reboot {
				once.Do(func() { close(gaveUp) })
			}
		}
	})
	v.errs = newConsole(qemuLog, func(line string) {
		if strings.HasPrefix(line, "KVM internal error") {
			v.notice(fmt.Errorf("%w: %s", ErrKVM, line))
			// QEMU stops the guest and waits for a debugger.
			once.Do(func() { close(gaveUp) })
		}
	})
	cmd := c.QEMU.Command(c.QEMUArgs()...)
	cmd.Stdout, cmd.Stderr = v.console, v.errs
	if v.proc, err = proc.Start(cmd); err != nil {
		return nil, errors.Join(err, consoleLog.Close(), qemuLog.Close())
	}
	go func() {
		select {
		case <-gaveUp:
			v.proc.Stop(0)
		case <-v.proc.Done():
		}
	}()
	go func() {
		err := v.proc.Err()
		v.settle(err)
		consoleLog.Close() //nolint:errcheck // a log
		qemuLog.Close()    //nolint:errcheck // a log
		close(v.done)
	}()
	if err := v.connect(ctx, handlers); err != nil {
		v.Stop()
		return nil, err
	}
	return v, nil
}

// connect opens the two sockets QEMU has made.
func (v *VM) connect(ctx context.Context, handlers control.Mux) error {
	v.mux = control.Mux{guest.KindPhase: v.takePhase}
	for k, h := range handlers {
		v.mux[k] = h
	}
	if err := v.openSession(ctx); err != nil {
		return err
	}
	probe, err := v.dial(ctx, qmpSocket)
	if err != nil {
		return err
	}
	// The library dials by itself; QEMU serves one client after the other.
	probe.Close() //nolint:errcheck // nothing was said
	v.mon, err = dialMonitor(ctx, filepath.Join(v.cfg.SocketDir, qmpSocket), v.event)
	return v.orEnd(err)
}

// openSession connects to the guest, or to the next one.
func (v *VM) openSession(ctx context.Context) error {
	conn, err := v.dial(ctx, controlSocket)
	if err != nil {
		return err
	}
	s := control.New(conn, control.Config{Role: control.Host, Handler: v.mux.Serve})
	v.mu.Lock()
	defer v.mu.Unlock()
	v.session = s
	return nil
}

// Restarted waits for the machine's next reset, by whomever, and connects to the
// guest that starts then: Hello, Ready and Control are its from here on, and
// sessions of the one before are closed.
func (v *VM) Restarted(ctx context.Context) error {
	select {
	case <-v.resets:
	case <-v.done:
		return v.ended()
	case <-ctx.Done():
		return fmt.Errorf("vm: waiting for a reset of the machine: %w", context.Cause(ctx))
	}
	v.Control().Close() //nolint:errcheck // the other side is gone
	for {
		select {
		case <-v.phases: // of the guest that was
			continue
		default:
		}
		return v.orVerdict(v.openSession(ctx))
	}
}

// dial connects to a socket as soon as QEMU listens on it.
func (v *VM) dial(ctx context.Context, name string) (net.Conn, error) {
	path := filepath.Join(v.cfg.SocketDir, name)
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-v.done:
			return nil, v.ended()
		case <-ctx.Done():
			return nil, fmt.Errorf("vm: waiting for QEMU's %s socket: %w", name, context.Cause(ctx))
		case <-time.After(dialPeriod):
		}
	}
}

// orVerdict replaces the error of a broken connection by the reason it broke.
func (v *VM) orVerdict(err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-v.done:
		if why := v.Wait(); why != nil {
			return why
		}
	case <-time.After(stopGrace / 10): // a death that is being noticed
	}
	return err
}

// orEnd replaces the error of a connection that a start needs by the end of QEMU, an
// orderly one included.
func (v *VM) orEnd(err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-v.done:
		return v.ended()
	case <-time.After(stopGrace): // an end that is being noticed
		return err
	}
}

func (v *VM) takePhase(_ context.Context, st *control.Stream) control.Result {
	var p guest.Phase
	if err := jsonBody(st, &p); err != nil {
		return control.Answer(nil, err)
	}
	select {
	case v.phases <- p:
		return control.Result{}
	default:
		return control.Answer(nil, errors.New("too many phases"))
	}
}

// Hello waits for the guest's control agent and returns what it says of itself.
func (v *VM) Hello(ctx context.Context) (control.Hello, error) {
	select {
	case <-v.done:
		return control.Hello{}, v.ended()
	default:
	}
	h, err := v.Control().Hello(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return h, fmt.Errorf("vm: waiting for the guest to boot: %w", context.Cause(ctx))
		}
		return h, v.orVerdict(err)
	}
	return h, nil
}

// Ready waits until the guest serves over the adapter. report gets each phase.
func (v *VM) Ready(ctx context.Context, report func(guest.Phase)) error {
	waiting := guest.PhaseModules
	for {
		select {
		case p := <-v.phases:
			if report != nil {
				report(p)
			}
			if p.Error != "" {
				return &PhaseError{Phase: p.Name, Text: p.Error}
			}
			switch p.Name {
			case guest.PhaseModules:
				waiting = guest.PhaseBind
			case guest.PhaseBind:
				waiting = guest.PhaseServe
			case guest.PhaseReady:
				return nil
			}
		case <-v.done:
			return v.ended()
		case <-ctx.Done():
			return fmt.Errorf("vm: waiting for the guest's phase %q: %w", waiting, context.Cause(ctx))
		}
	}
}

// ended is Wait for callers that wanted a running machine.
func (v *VM) ended() error {
	if err := v.Wait(); err != nil {
		return err
	}
	return fmt.Errorf("%w: the guest switched itself off", ErrQEMU)
}

// Phases delivers what the guest reports after Ready.
func (v *VM) Phases() <-chan guest.Phase { return v.phases }

// Control is the channel to the guest.
func (v *VM) Control() *control.Session {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.session
}

// Done is closed when the machine has ended.
func (v *VM) Done() <-chan struct{} { return v.done }

// Wait waits for the end and says what it was; nil is an orderly one.
func (v *VM) Wait() error {
	<-v.done
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.verdict
}

// ConsoleTail returns the console's last lines, at most n.
func (v *VM) ConsoleTail(n int) string { return v.console.Tail(n) }

// Mirror copies the console to w from now on.
func (v *VM) Mirror(w io.Writer) {
	v.console.mu.Lock()
	defer v.console.mu.Unlock()
	v.console.mirror = w
}

// Execute runs a QMP command.
func (v *VM) Execute(ctx context.Context, command string, args, out any) error {
	return v.orVerdict(v.mon.Execute(ctx, command, args, out))
}

// PID returns QEMU's process id.
func (v *VM) PID() int { return v.proc.PID() }

// Stop ends the machine and returns when it is gone.
func (v *VM) Stop() {
	v.mu.Lock()
	v.stopping = true
	v.mu.Unlock()
	if v.mon != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
		defer cancel()
		v.mon.Execute(ctx, "quit", nil, nil) //nolint:errcheck // the rest makes sure
		select {
		case <-v.done:
		case <-ctx.Done():
		}
	}
	v.proc.Stop(stopGrace)
	<-v.done
	if s := v.Control(); s != nil {
		s.Close() //nolint:errcheck // QEMU's end is gone
	}
}

// notice sets the verdict if there is none.
func (v *VM) notice(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.noticed && !v.stopping {
		v.verdict, v.noticed = err, true
	}
}

// event takes what QEMU tells over QMP.
func (v *VM) event(e qmp.Event) {
	switch e.Event {
	case "SHUTDOWN":
		reason, _ := e.Data["reason"].(string)
		v.mu.Lock()
		defer v.mu.Unlock()
		v.shutdown = reason
	case "RESET":
		select {
		case v.resets <- struct{}{}:
		default: // nobody has asked for a long time
		}
	}
}

// settle makes the verdict of a QEMU that has ended.
func (v *VM) settle(err error) {
	v.mu.Lock()
	orderly := v.stopping || err == nil
	v.mu.Unlock()
	if orderly {
		v.notice(nil)
		return
	}
	v.notice(fmt.Errorf("%w (%v): %s", ErrQEMU, err, v.errs.Tail(1)))
}
