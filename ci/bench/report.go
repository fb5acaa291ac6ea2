// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"
)

// Report is what a run of the benchmark found.
type Report struct {
	When    time.Time `json:"when"`
	Machine Machine   `json:"machine"`
	Network string    `json:"network"` // "tap" or "user"
	// Counts says that figures are comparable: the same kind of network on both sides.
	Counts bool     `json:"counts"`
	Pace   Pace     `json:"pace"`
	Rows   []Row    `json:"rows"`
	Failed []string `json:"failed,omitempty"` // what could not be measured
}

// WriteJSON writes the report as JSON.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	var err error
	say := func(format string, args ...any) {
		if err == nil {
			_, err = fmt.Fprintf(w, format, args...)
		}
	}
	for _, line := range r.Head() {
		say("%s\n", line)
	}
	last := ""
	for i := range r.Rows {
		row := &r.Rows[i]
		if row.Case != last {
			say("\n%-50s%-24s%-24s%8s  %s\n", row.Case, "virtio", "adapter", "ratio", "target")
			last = row.Case
		}
		say("  %-48s%-24s%-24s%8s  %s\n", fmt.Sprintf("%s, %s (%s)", row.Way, row.Metric, row.Unit),
			summaryText(row.Virtio), row.Adapter, ratioText(row.Ratio), row.verdict())
	}
	for _, f := range r.Failed {
		say("\nfailed: %s\n", f)
	}
	return err
}

// Head says what was measured how.
func (r *Report) Head() []string {
	network := "tap devices in a network namespace, offloads on, the host kernel's TCP as the peer of both"
	if !r.Counts {
		network = "virtio on QEMU's user networking, the adapter on its gateway: no such figures count as targets met"
	}
	m := &r.Machine
	head := []string{
		fmt.Sprintf("%s, %d processors; %s; Linux %s; %s", m.Processor, m.Processors, m.QEMU, m.Kernel, m.Go),
		fmt.Sprintf("guest: %s, %d processors, Linux %s; %s", m.Accel, m.GuestProcessors, m.GuestKernel, network),
		fmt.Sprintf("medians (lowest-highest) of %d runs of each in turns, %v each; round trips and single connections by one thread; toebox %s", r.Pace.Rounds, r.Pace.For, m.Revision),
	}
	if o := r.other(); o > quiet {
		head = append(head, fmt.Sprintf("the machine was not idle: other programs took %.0f %% of a processor", o*100))
	}
	return head
}

// quiet is the share of a processor that other programs may take.
const quiet = 0.10

// other is the median of what rows say of other programs.
func (r *Report) other() float64 {
	var all []float64
	for i := range r.Rows {
		if row := &r.Rows[i]; !row.timed() {
			all = append(all, row.Other)
		}
	}
	if len(all) == 0 {
		return 0
	}
	return Summarize(all).Median
}

// Missed counts the targets that were not met, of all there are.
func (r *Report) Missed() (missed, of int) {
	for i := range r.Rows {
		if t := r.Rows[i].Target; t != nil {
			of++
			if m := r.Rows[i].Met; m == nil || !*m {
				missed++
			}
		}
	}
	return missed, of
}

// String is a summary as the table has it.
func (s Summary) String() string {
	return fmt.Sprintf("%s (%s-%s)", number(s.Median), number(s.Min), number(s.Max))
}

func summaryText(s *Summary) string {
	if s == nil {
		return "-"
	}
	return s.String()
}

// number writes three significant digits, and whole numbers whole.
func number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case v >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

func ratioText(r *float64) string {
	if r == nil {
		return "-"
	}
	return number(*r) + "x"
}

// verdict is the last column.
func (r *Row) verdict() string {
	if r.Target == nil {
		return ""
	}
	text := r.Target.String()
	switch {
	case r.Met == nil:
		return text + " (does not count)"
	case *r.Met:
		return text + " met"
	}
	return text + " MISSED"
}

// String says where a row must get to.
func (t Target) String() string {
	switch {
	case t.AtLeast > 0:
		return "at least " + number(t.AtLeast) + "x"
	case t.AtMost > 0:
		return "at most " + number(t.AtMost) + "x"
	}
	return "at most " + number(t.Most)
}
