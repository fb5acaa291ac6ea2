// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"toebox/ci/bench/task"
)

// Sample is one run of a task, as guest and host saw it.
type Sample struct {
	task.Result
	Device time.Duration // of the device, outside the virtual processors
	Host   time.Duration // of QEMU, virtual processors included, keeper and device process
	Other  time.Duration // of the rest of the machine, the peer not included
	Window time.Duration // in which the host counted

	DeviceMemory int64 // bytes that idle connections take there
}

// Metric is a number that a sample has.
type Metric struct {
	Name, Unit string
	More       bool // is better
	Of         func(*Sample) float64
	Alone      bool // virtio has no such number
}

const (
	megabyte = 1e6
	gigabyte = 1e9
)

// per divides, and is 0 where nothing was done.
func per(what, by float64) float64 {
	if by == 0 {
		return 0
	}
	return what / by
}

// throughput and so on are the metrics.
func throughput() Metric {
	return Metric{Name: nameThroughput, Unit: "MB/s", More: true, Of: func(s *Sample) float64 { return per(float64(s.Bytes)/megabyte, s.Elapsed.Seconds()) }}
}

func guestPerGB() Metric {
	return Metric{Name: nameGuestCPU, Unit: "s/GB", Of: func(s *Sample) float64 { return per(s.Busy.Seconds(), float64(s.Bytes)/gigabyte) }}
}

func devicePerGB() Metric {
	return Metric{Name: "device CPU", Unit: "s/GB", Of: func(s *Sample) float64 { return per(s.Device.Seconds(), float64(s.Bytes)/gigabyte) }}
}

func hostPerGB() Metric {
	return Metric{Name: "QEMU and device CPU", Unit: "s/GB", Of: func(s *Sample) float64 { return per(s.Host.Seconds(), float64(s.Bytes)/gigabyte) }}
}

func signalsPerMB() Metric {
	return Metric{Name: nameSignals, Unit: "/MB", Of: func(s *Sample) float64 { return per(float64(s.Interrupts+s.Doorbells), float64(s.Bytes)/megabyte) }}
}

func interruptsPerMB() Metric {
	return Metric{Name: nameInterrupts, Unit: "/MB", Of: func(s *Sample) float64 { return per(float64(s.Interrupts), float64(s.Bytes)/megabyte) }}
}

func rate() Metric {
	return Metric{Name: nameRate, Unit: "/s", More: true, Of: func(s *Sample) float64 { return per(float64(s.Ops), s.Elapsed.Seconds()) }}
}

func median() Metric {
	return Metric{Name: nameMedian, Unit: "us", Of: func(s *Sample) float64 { return float64(s.Median) / 1e3 }}
}

func p99() Metric {
	return Metric{Name: "p99", Unit: "us", Of: func(s *Sample) float64 { return float64(s.P99) / 1e3 }}
}

func guestPerOp() Metric {
	return Metric{Name: nameGuestCPU, Unit: "us each", Of: func(s *Sample) float64 { return per(s.Busy.Seconds()*1e6, float64(s.Ops)) }}
}

func signalsPerOp() Metric {
	return Metric{Name: nameSignals, Unit: "each", Of: func(s *Sample) float64 { return per(float64(s.Interrupts+s.Doorbells), float64(s.Ops)) }}
}

func heapEach() Metric {
	return Metric{Name: nameDriver, Unit: "B each", Of: func(s *Sample) float64 { return per(float64(s.Heap), float64(s.Ops)) }}
}

func memoryEach() Metric {
	return Metric{Name: "guest memory", Unit: "B each", Of: func(s *Sample) float64 { return per(float64(s.Memory), float64(s.Ops)) }}
}

func deviceEach() Metric {
	return Metric{Name: nameDevice, Unit: "B each", Alone: true, Of: func(s *Sample) float64 { return per(float64(s.DeviceMemory), float64(s.Ops)) }}
}

func millis() Metric {
	return Metric{Name: "median", Unit: "ms", Of: func(s *Sample) float64 { return float64(s.Median) / 1e6 }}
}

// Target says where a row must get to; zero values say nothing.
type Target struct {
	AtLeast float64 `json:"at_least,omitempty"` // ratio
	AtMost  float64 `json:"at_most,omitempty"`  // ratio
	Most    float64 `json:"most,omitempty"`     // of the adapter's number itself
}

// met says whether a row does.
func (t Target) met(r *Row) bool {
	switch {
	case t.AtLeast > 0 && (r.Ratio == nil || *r.Ratio < t.AtLeast), t.AtMost > 0 && (r.Ratio == nil || *r.Ratio > t.AtMost):
		return false
	}
	return t.Most == 0 || r.Adapter.Median <= t.Most
}

// Way is one way in which the adapter does a case.
type Way struct {
	Name    string // such as "zero-copy"
	Task    task.Task
	Targets map[string]Target // by the names of metrics
}

// Case is something that both devices do.
type Case struct {
	Name    string
	Virtio  task.Task // of no side: it has nothing like it
	Ways    []Way
	Rounds  int  // if other than those of all
	Ample   bool // it needs a guest with much memory
	Metrics []Metric
}

// Row compares one number of a case.
type Row struct {
	Case    string    `json:"case"`
	Way     string    `json:"way"` // of the adapter
	Metric  string    `json:"metric"`
	Unit    string    `json:"unit"`
	More    bool      `json:"more_is_better"`
	Virtio  *Summary  `json:"virtio,omitempty"`
	Adapter Summary   `json:"adapter"`
	Ratio   *float64  `json:"ratio"`  // median of adapter/virtio of neighbouring runs; null: nothing to divide by
	Ratios  []float64 `json:"ratios"` // of neighbouring runs
	Target  *Target   `json:"target,omitempty"`
	Met     *bool     `json:"met,omitempty"` // only of figures that count
	// Other is the processors' share that the rest of the machine took meanwhile, of
	// one processor: the median of all runs; of a TimedRow nobody asked.
	Other float64 `json:"other_load"`
}

// Runner does tasks: a [Lab], or a test's.
type Runner interface {
	Run(ctx context.Context, t *task.Task) (*Sample, error)
}

// Measure has both devices do a case in turns, rounds times, and makes its rows.
// Only figures that count meet targets.
func Measure(ctx context.Context, r Runner, c *Case, rounds int, counts bool) ([]Row, error) {
	if c.Rounds > 0 {
		rounds = min(c.Rounds, rounds)
	}
	var tasks []*task.Task
	if c.Virtio.Side != "" {
		tasks = append(tasks, &c.Virtio)
	}
	alone := len(tasks) == 0
	for i := range c.Ways {
		tasks = append(tasks, &c.Ways[i].Task)
	}
	samples := make([][]*Sample, len(tasks))
	for range rounds {
		for i, t := range tasks {
			s, err := r.Run(ctx, t)
			if err != nil {
				return nil, fmt.Errorf("bench: %s: %w", c.Name, err)
			}
			samples[i] = append(samples[i], s)
		}
	}
	if rounds == 0 {
		return nil, errors.New("bench: no rounds")
	}
	var rows []Row
	var virtio []*Sample
	if !alone {
		virtio, samples = samples[0], samples[1:]
	}
	for i := range c.Ways {
		for _, m := range c.Metrics {
			rows = append(rows, c.row(&c.Ways[i], m, virtio, samples[i], counts))
		}
	}
	return rows, nil
}

// row makes one of the samples of both sides.
func (c *Case) row(w *Way, m Metric, virtio, adapter []*Sample, counts bool) Row {
	values := func(samples []*Sample) (out []float64) {
		for _, s := range samples {
			out = append(out, m.Of(s))
		}
		return out
	}
	r := Row{
		Case: c.Name, Way: w.Name, Metric: m.Name, Unit: m.Unit, More: m.More,
		Adapter: Summarize(values(adapter)),
	}
	if len(virtio) > 0 && !m.Alone {
		v := Summarize(values(virtio))
		r.Virtio, r.Ratios = &v, ratios(r.Adapter.Values, v.Values)
	}
	if len(r.Ratios) > 0 {
		v := Summarize(r.Ratios).Median
		r.Ratio = &v
	}
	var other []float64
	for _, s := range slices.Concat(virtio, adapter) {
		other = append(other, per(s.Other.Seconds(), s.Window.Seconds()))
	}
	r.Other = Summarize(other).Median
	if t, ok := w.Targets[m.Name]; ok {
		r.Target = &t
		if counts {
			met := t.met(&r)
			r.Met = &met
		}
	}
	return r
}

// Names of what is timed outside of the VM that has both devices: see [TimedRow].
const (
	TimedRun    = "make run to the first byte of HTTP"
	TimedReload = "saved firmware to the first byte of HTTP"
)

// timed says whether a row is of TimedRow.
func (r *Row) timed() bool { return r.Case == TimedRun || r.Case == TimedReload }

// runTarget is how long the first of these may take, in seconds.
const runTarget = 4

// TimedRow makes a row of times, of which there is one at least. Networks have no part in
// them: they always count.
func TimedRow(name string, times []time.Duration) Row {
	var values []float64
	for _, t := range times {
		values = append(values, t.Seconds())
	}
	r := Row{Case: name, Way: "toebox", Metric: "time", Unit: "s", Adapter: Summarize(values)}
	if name == TimedRun {
		r.Target = &Target{Most: runTarget}
		met := r.Target.met(&r)
		r.Met = &met
	}
	return r
}
