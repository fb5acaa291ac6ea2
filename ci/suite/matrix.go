// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"fmt"
	"io"
	"slices"

	"toebox/ci/conformance"
	"toebox/ci/runner"
)

// Matrix prints requirements by rungs: how many functions passed of those that
// ran.
func Matrix(w io.Writer, rs []runner.Result, buses []string) {
	type cell struct{ passed, ran int }
	rows := map[string]map[string]*cell{}
	ids := map[string][]string{}
	for _, t := range conformance.Tests() {
		ids[t.Name] = t.IDs
	}
	for i := range rs {
		bus := rung(rs[i])
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
	fmt.Fprintf(w, "\n%-8s", "")
	for _, b := range buses {
		fmt.Fprintf(w, "%8s", b)
	}
	fmt.Fprintln(w)
	for _, id := range names {
		fmt.Fprintf(w, "%-8s", id)
		for _, b := range buses {
			c := rows[id][b]
			if c == nil {
				fmt.Fprintf(w, "%8s", "-")
				continue
			}
			text := fmt.Sprintf("%d/%d", c.passed, c.ran)
			if c.passed < c.ran {
				text = "! " + text
			}
			fmt.Fprintf(w, "%8s", text)
		}
		fmt.Fprintln(w)
	}
}
