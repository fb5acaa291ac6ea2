// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"fmt"
	"io"
	"slices"

	"toebox/ci/conformance"
	"toebox/ci/runner"
)

// Matrix prints requirements by columns: how many functions passed of those that
// ran. tests are the functions that there are.
func Matrix(w io.Writer, tests []*conformance.Test, rs []runner.Result, buses []string) {
	type cell struct{ passed, ran int }
	rows := map[string]map[string]*cell{}
	ids := map[string][]string{}
	for _, t := range tests {
		ids[t.Name] = t.IDs
	}
	skipped := map[string]bool{}
	for i := range rs {
		bus := columnName(&rs[i])
		skipped[bus] = skipped[bus] || rs[i].Name == networkTest
		for _, id := range ids[rs[i].Name] {
			if rows[id] == nil {
				rows[id] = map[string]*cell{}
			}
			if rows[id][bus] == nil {
				rows[id][bus] = &cell{}
			}
			rows[id][bus].ran++
			if rs[i].Action == runner.ActionPass {
				rows[id][bus].passed++
			}
		}
	}
	names := make([]string, 0, len(rows))
	for id := range rows {
		names = append(names, id)
	}
	slices.Sort(names)
	width := func(bus string) int { return max(8, len(bus)+2) }
	fmt.Fprintf(w, "\n%-8s", "")
	for _, b := range buses {
		fmt.Fprintf(w, "%*s", width(b), b)
	}
	fmt.Fprintln(w)
	for _, id := range names {
		fmt.Fprintf(w, "%-8s", id)
		for _, b := range buses {
			c := rows[id][b]
			text := "-"
			switch {
			case skipped[b]:
				text = "skip"
			case c != nil && c.passed < c.ran:
				text = fmt.Sprintf("! %d/%d", c.passed, c.ran)
			case c != nil:
				text = fmt.Sprintf("%d/%d", c.passed, c.ran)
			}
			fmt.Fprintf(w, "%*s", width(b), text)
		}
		fmt.Fprintln(w)
	}
}
