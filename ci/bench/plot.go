// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// The plot's measures, in pixels, and its scale: how many times better the adapter is,
// by powers of ten.
const (
	plotLabel, plotWidth, plotRow = 470, 560, 20
	plotFrom, plotTo              = -1.0, 3.0
)

// better says how many times better than virtio a ratio is, as a logarithm within
// the plot.
func better(ratio float64, more bool) float64 {
	if !more {
		ratio = 1 / ratio
	}
	return min(max(math.Log10(ratio), plotFrom), plotTo)
}

// across is the place of a logarithm in the plot.
func across(log float64) float64 {
	return plotLabel + (log-plotFrom)/(plotTo-plotFrom)*plotWidth
}

// WritePage writes the report as a page of HTML that needs nothing else: the plot, and
// the table.
func (r *Report) WritePage(w io.Writer) error {
	var table strings.Builder
	if err := r.WriteTable(&table); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>toebox bench</title>
<style>body{font-family:sans-serif;margin:1.5em} svg text{font-size:12px;font-family:sans-serif} pre{font-size:12px}</style></head>
<body><h1>The adapter beside virtio-net</h1>
<p>How many times better the adapter is, by powers of ten: the median, and each pair of neighbouring runs. A line across a row is its target.</p>
%s
<pre>%s</pre>
</body></html>
`, r.plot(), html.EscapeString(table.String()))
	return err
}

// plot draws a line for each row that has a ratio.
func (r *Report) plot() string {
	var b strings.Builder
	y := plotRow
	var rows strings.Builder
	for i := range r.Rows {
		row := &r.Rows[i]
		if row.Ratio == nil || *row.Ratio <= 0 {
			continue
		}
		y += plotRow
		colour := "#2a7"
		if better(*row.Ratio, row.More) < 0 {
			colour = "#c33"
		}
		fmt.Fprintf(&rows, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", plotLabel-8, y+4,
			html.EscapeString(fmt.Sprintf("%s: %s, %s", row.Case, row.Way, row.Metric)))
		x, zero := across(better(*row.Ratio, row.More)), across(0)
		fmt.Fprintf(&rows, "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\" opacity=\"0.5\"><title>%s</title></rect>\n",
			min(x, zero), y-6, math.Abs(x-zero), 12, colour, ratioText(row.Ratio))
		for _, v := range row.Ratios {
			if v > 0 {
				fmt.Fprintf(&rows, "<circle cx=\"%.1f\" cy=\"%d\" r=\"2\" fill=\"%s\"/>\n", across(better(v, row.More)), y, colour)
			}
		}
		if t := row.Target; t != nil && t.AtLeast+t.AtMost > 0 {
			at := across(better(t.AtLeast+t.AtMost, row.More))
			fmt.Fprintf(&rows, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"black\" stroke-width=\"2\"/>\n", at, y-8, at, y+8)
		}
	}
	height := y + plotRow
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\">\n", plotLabel+plotWidth+40, height)
	for p := plotFrom; p <= plotTo; p++ {
		fmt.Fprintf(&b, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#bbb\"/><text x=\"%.1f\" y=\"14\" text-anchor=\"middle\">%gx</text>\n",
			across(p), plotRow, across(p), height-plotRow/2, across(p), math.Pow(10, p))
	}
	b.WriteString(rows.String())
	b.WriteString("</svg>")
	return b.String()
}
