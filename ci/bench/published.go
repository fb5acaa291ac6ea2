// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
)

// Published is a ratio that others have been told of, or the reason why a row that has
// a ratio is not compared with one.
type Published struct {
	Case    string  `json:"case"`
	Way     string  `json:"way"`
	Metric  string  `json:"metric"`
	Ratio   float64 `json:"ratio,omitempty"`
	LeftOut string  `json:"left_out,omitempty"`
}

//go:embed published.json
var published []byte

// worse is how many times worse than a published ratio a row may be: its figures are
// of a busy machine, and of a few short runs.
const worse = 2

// ReadPublished returns what is published of the cases of QuickPace.
func ReadPublished() ([]Published, error) {
	var all []Published
	d := json.NewDecoder(bytes.NewReader(published))
	d.DisallowUnknownFields()
	if err := d.Decode(&all); err != nil {
		return nil, fmt.Errorf("bench: published ratios: %w", err)
	}
	return all, nil
}

// Worse compares a quick report with what is published, and returns a line for each row
// that is worse than half of that. Of figures that do not count, and of fewer rounds than
// QuickPace has, it says nothing.
func (r *Report) Worse(all []Published) []string {
	if !r.compared() {
		return nil
	}
	return worseRows(r.Rows, all)
}

// compared says whether rows of the report are compared with what is published.
func (r *Report) compared() bool {
	return r.Counts && r.Pace.Quick && r.Pace.Rounds >= QuickPace().Rounds
}

// few says that so little of something is left that its ratio is chance: the number itself
// has a target, which it meets.
func (r *Row) few() bool {
	return r.Target != nil && r.Target.Most > 0 && r.Target.met(r)
}

// worseRows returns a line for each row that is worse than half of what is published.
func worseRows(rows []Row, all []Published) []string {
	var lines []string
	for i := range rows {
		row := &rows[i]
		for _, p := range all {
			if p.Case != row.Case || p.Way != row.Way || p.Metric != row.Metric || p.LeftOut != "" {
				continue
			}
			name := fmt.Sprintf("%s: %s, %s", row.Case, row.Way, row.Metric)
			switch {
			case row.few():
			case row.Ratio == nil:
				lines = append(lines, fmt.Sprintf("%s: no ratio, %sx is published", name, number(p.Ratio)))
			case row.More && *row.Ratio < p.Ratio/worse:
				lines = append(lines, fmt.Sprintf("%s: %s, less than half of the published %sx", name, ratioText(row.Ratio), number(p.Ratio)))
			case !row.More && *row.Ratio > p.Ratio*worse:
				lines = append(lines, fmt.Sprintf("%s: %s, more than twice the published %sx", name, ratioText(row.Ratio), number(p.Ratio)))
			}
		}
	}
	return lines
}
