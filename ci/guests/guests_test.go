// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"toebox/images/control"
	"toebox/images/vm"
)

// TestGuest has a guest drive all devices behind each kind of IOMMU, then resets it
// under load, by QEMU and by its own kernel, and has it drive them again.
func TestGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines, half a minute: run without -short")
	}
	for _, iommu := range []string{vm.IOMMUIntel, vm.IOMMUVirtio} {
		t.Run(iommu, func(t *testing.T) {
			t.Parallel()
			m := boot(t, iommu)
			m.drive()
			for _, reset := range []func(){m.systemReset, m.reboot} {
				began, before := time.Now(), m.servers()
				stop := m.load()
				reset()
				for name, s := range m.servers() {
					// QEMU's intel-iommu takes all there is away in large pieces.
					if iommu == vm.IOMMUIntel && name != "sample" && s.DMAUnmapsWide == before[name].DMAUnmapsWide {
						t.Errorf("the reset of %s unmapped nothing by a range wider than what was in it: there was no load", name)
					}
				}
				m.up()
				stop()
				m.drive()
				t.Logf("reset %v", time.Since(began))
			}
			m.Stop()
			if log := m.qemuLog(); log != "" {
				t.Errorf("QEMU says: %s", log)
			}
			for name, s := range m.servers() {
				t.Logf("%s: %+v", name, s)
				if s.Errors != 0 || s.NoReplyFailed != 0 || s.StrayReplies != 0 {
					t.Errorf("the server of %s refused messages", name)
				}
				if s.Connections != 1 {
					t.Errorf("%s had %d clients", name, s.Connections)
				}
			}
		})
	}
}

// drive has the guest use each device once.
func (m *machine) drive() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	began := time.Now()
	first := m.clock()
	read := time.Now()
	m.check("HTTP in", m.fetch(ctx))
	out, err := m.exec(tool, "fetch", "-connect-timeout=1m", "-timeout=90s", "-o", "/tmp/page", m.out)
	m.check("HTTP out "+out, err)
	out, err = m.exec("wc", "-c", "/tmp/page")
	m.check("HTTP out", err)
	if f := strings.Fields(out); len(f) == 0 || f[0] != strconv.Itoa(blob) {
		m.t.Errorf("HTTP out: wc says %q, want %d bytes", out, blob)
	}
	_, err = m.exec(probe, "edu")
	m.check("edu", err)
	_, err = m.exec(probe, "sample")
	m.check("sample", err)
	least := time.Since(read)
	passed := m.clock() - first
	most := time.Since(began)
	// All that waits in the guest relies on it.
	if passed < least-least/10 || passed > most+most/10 {
		m.t.Errorf("%v passed in the guest, %v to %v here", passed, least, most)
	}
}

// clock is how long the guest has been up, by itself.
func (m *machine) clock() time.Duration {
	m.t.Helper()
	out, err := m.exec("cat", "/proc/uptime")
	m.check("clock", err)
	text, _, _ := strings.Cut(out, " ")
	seconds, err := strconv.ParseFloat(text, 64)
	m.check("clock", err)
	return time.Duration(seconds * float64(time.Second))
}

// load makes the devices work, and returns what ends that: HTTP both ways, and DMA
// of the teaching device. It returns when each is under way.
func (m *machine) load() (stop func()) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	var work sync.WaitGroup
	var fetched atomic.Int64
	served, moved := m.served.Load(), m.edu.Server().Stats().Triggers
	for range 3 {
		work.Go(func() {
			for ctx.Err() == nil {
				// A page asked of a guest that is reset meanwhile never comes.
				one, done := context.WithTimeout(ctx, patience)
				err := m.fetch(one)
				done()
				if err == nil {
					fetched.Add(1)
					continue
				}
				// While nobody listens. It must not keep the guest from booting.
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		})
	}
	guest := m.Control()
	ended := make(chan string, 2)
	for _, args := range [][]string{{probe, "edu-load"}, {probe, "repeat", tool, "fetch", "-o", "/dev/null", m.out}} {
		work.Go(func() { // ends with the guest
			var bad bytes.Buffer
			res, err := control.Run(ctx, guest, control.Request{Args: args}, control.Streams{Stderr: &bad})
			ended <- fmt.Sprintf("%v: %+v, %v: %s", args, res, err, &bad)
		})
	}
	for deadline := time.Now().Add(patience); fetched.Load() < 5 || m.served.Load() < served+2 || m.edu.Server().Stats().Triggers < moved+50; {
		if time.Now().After(deadline) {
			m.t.Fatalf("the load is not under way: %d pages in, %d out, %d interrupts of edu",
				fetched.Load(), m.served.Load()-served, m.edu.Server().Stats().Triggers-moved)
		}
		select {
		case why := <-ended:
			m.t.Fatalf("the load has ended: %s", why)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return func() {
		cancel()
		work.Wait()
	}
}

// systemReset has QEMU reset the machine, and looks at it before the next guest runs.
func (m *machine) systemReset() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	if !m.mapped() {
		m.t.Error("the adapter does not reach the driver's memory")
	}
	m.check("stop", m.Execute(ctx, "stop", nil, nil))
	m.check("reset", m.Execute(ctx, "system_reset", nil, nil))
	m.check("reset", m.Restarted(ctx))
	if m.mapped() {
		m.t.Error("the adapter reaches the memory of a driver that is gone")
	}
	m.check("continue", m.Execute(ctx, "cont", nil, nil))
}

// reboot has the guest's kernel reset the machine.
func (m *machine) reboot() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := m.exec(probe, "reboot")
		ended <- err
	}()
	m.check("reboot", m.Restarted(ctx))
	if err := <-ended; err == nil {
		m.t.Error("the command that restarted the guest has ended well")
	}
}
