// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"math"
	"slices"
)

// Summary is what a number was in several runs.
type Summary struct {
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	Values []float64 `json:"values"` // in the order of the runs
}

// Summarize returns the summary of values, of which there is one at least.
func Summarize(values []float64) Summary {
	s := slices.Clone(values)
	slices.Sort(s)
	return Summary{Median: middle(s), Min: s[0], Max: s[len(s)-1], Values: values}
}

// middle is the median of sorted values.
func middle(s []float64) float64 {
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// ratios divides neighbouring runs. What was nothing on both sides has no ratio.
func ratios(of, by []float64) []float64 {
	var out []float64
	for i := range min(len(of), len(by)) {
		if r := of[i] / by[i]; !math.IsNaN(r) && !math.IsInf(r, 0) {
			out = append(out, r)
		}
	}
	return out
}
