// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"time"

	"toebox/ci/bench/task"
)

// Pace says how long measurements are and how often they are repeated.
type Pace struct {
	Rounds    int
	Warm, For time.Duration
	Quick     bool // fewer cases
}

// FullPace is what figures are published of, QuickPace what shows that nothing broke.
func FullPace() Pace { return Pace{Rounds: 5, Warm: 300 * time.Millisecond, For: time.Second} }

// QuickPace takes a minute in all.
func QuickPace() Pace {
	return Pace{Rounds: 3, Warm: 200 * time.Millisecond, For: 400 * time.Millisecond, Quick: true}
}

// Names of metrics that targets are about.
const (
	nameThroughput = "throughput"
	nameGuestCPU   = "guest CPU"
	nameSignals    = "interrupts, doorbells"
	nameInterrupts = "interrupts"
	nameRate       = "rate"
	nameMedian     = "median"
	nameDriver     = "driver's data"
	nameDevice     = "device memory"
)

// Ways of the adapter to move bytes.
const (
	buffered = "buffered"
	zeroCopy = "zero-copy"
)

// bulkTargets are those of one connection and writes of 64 KiB.
func bulkTargets(kind task.Kind, way string) map[string]Target {
	throughput, cpu := 6.0, 1.0/12
	if kind == task.Receive {
		throughput, cpu = 4, 1.0/10
	}
	t := map[string]Target{nameThroughput: {AtLeast: throughput}, nameInterrupts: {Most: 0.5}}
	if way == zeroCopy {
		t[nameGuestCPU] = Target{AtMost: cpu}
	}
	return t
}

// Cases are all comparisons, in the order of the table.
func Cases(p Pace) []Case {
	var out []Case
	base := func(kind task.Kind, conns, size int) task.Task {
		return task.Task{Side: task.Virtio, Kind: kind, Conns: conns, Size: size, Warm: p.Warm, For: p.For}
	}
	adapter := func(t task.Task, mode string, direct bool) task.Task {
		t.Side, t.Mode, t.Direct = task.Adapter, mode, direct
		return t
	}
	bulk := func(conns, size int) {
		for _, kind := range []task.Kind{task.Send, task.Receive} {
			t := base(kind, conns, size)
			c := Case{
				Name: fmt.Sprintf("%s, %s, %s", kind, plural(conns, "connection"), bytesText(size)), Virtio: t,
				Metrics: []Metric{throughput(), guestPerGB(), interruptsPerMB(), signalsPerMB(), devicePerGB(), hostPerGB()},
			}
			for _, way := range []string{buffered, zeroCopy} {
				w := Way{Name: way, Task: adapter(t, "", way == zeroCopy)}
				if conns == 1 && size == 64<<10 {
					w.Targets = bulkTargets(kind, way)
				}
				c.Ways = append(c.Ways, w)
			}
			out = append(out, c)
		}
	}
	echo := func(size int) {
		t := base(task.Echo, 1, size)
		c := Case{
			Name: fmt.Sprintf("round trip, %s", bytesText(size)), Virtio: t,
			Metrics: []Metric{median(), p99(), guestPerOp(), signalsPerOp()},
		}
		for _, mode := range []string{task.Interrupt, task.Hybrid, task.Poll} {
			w := Way{Name: mode, Task: adapter(t, mode, false)}
			if size == 64 {
				w.Targets = map[string]Target{nameGuestCPU: {AtMost: 0.5}}
				switch mode {
				case task.Hybrid:
					w.Targets[nameMedian] = Target{AtMost: 0.6}
				case task.Poll:
					w.Targets = map[string]Target{nameMedian: {AtMost: 0.4}}
				}
			}
			c.Ways = append(c.Ways, w)
		}
		out = append(out, c)
	}
	bulk(1, 64<<10)
	echo(64)
	connects := base(task.Connect, 1, 0)
	out = append(out, Case{
		Name: "connect and close, one after another", Virtio: connects,
		Ways: []Way{{Name: "Dial", Task: adapter(connects, "", false), Targets: map[string]Target{
			nameRate: {AtLeast: 2}, nameSignals: {Most: 1.5},
		}}},
		Metrics: []Metric{rate(), guestPerOp(), signalsPerOp(), median(), p99()},
	})
	out = append(out, Case{
		Name: "connect, 1,000 at once beside one after another", Virtio: connects,
		Ways: []Way{{Name: "BulkConnect", Task: task.Task{Side: task.Adapter, Kind: task.Bulk, Conns: 1000}, Targets: map[string]Target{
			nameRate: {AtLeast: 8}, nameSignals: {Most: 0.05},
		}}},
		Metrics: []Metric{rate(), signalsPerOp()},
	})
	accepts := base(task.Accept, 0, 0)
	out = append(out, Case{
		Name: "accept and close", Virtio: accepts,
		Ways:    []Way{{Name: "Listener", Task: adapter(accepts, "", false)}},
		Metrics: []Metric{rate(), guestPerOp(), signalsPerOp()},
	})
	if p.Quick {
		return out
	}
	idle := task.Task{Side: task.Virtio, Kind: task.Idle, Conns: 10000}
	out = append(out, Case{
		Name: "10,000 idle connections", Virtio: idle, Rounds: 1, Ample: true,
		Ways:    []Way{{Name: "Dial", Task: adapter(idle, "", false), Targets: map[string]Target{nameDriver: {Most: 1 << 10}, nameDevice: {Most: 16 << 10}}}},
		Metrics: []Metric{heapEach(), memoryEach(), deviceEach()},
	})
	for _, m := range []struct {
		name string
		size int
		huge bool
	}{{"DMA memory, 16 MiB in pages of 4 KiB", 16 << 20, false}, {"DMA memory, 256 MiB in huge pages", 256 << 20, true}} {
		out = append(out, Case{
			Name:    m.name,
			Ample:   true,
			Ways:    []Way{{Name: "AllocDMA", Task: task.Task{Side: task.Adapter, Kind: task.Map, Size: m.size, Direct: m.huge}}},
			Metrics: []Metric{millis()},
		})
	}
	echo(1400)
	for _, conns := range []int{8, 64} {
		bulk(conns, 64<<10)
	}
	for _, size := range []int{4 << 10, 1 << 20} {
		bulk(1, size)
	}
	return out
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func bytesText(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}
