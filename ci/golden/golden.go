// SPDX-License-Identifier: Apache-2.0

package golden

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Normal removes what may differ from boot to boot.
func Normal(text string) string {
	irq := regexp.MustCompile(`routed to IRQ \d+`)
	return irq.ReplaceAllString(strings.TrimSpace(text), "routed to IRQ N") + "\n"
}

// Complaints are the signs of a function that does not keep the rules of PCI.
func Complaints(text string) []string {
	var bad []string
	for _, sign := range []string{
		"<access denied>", "Unknown header", "Unknown, version", "!!!", "<chain looped>", "<chain broken>", "<unassigned>", "[virtual]",
	} {
		if strings.Contains(text, sign) {
			bad = append(bad, sign)
		}
	}
	return bad
}

// Resource is a line of a function's resource file in sysfs.
type Resource struct{ Start, End, Flags uint64 }

// Size in bytes.
func (r Resource) Size() uint64 {
	if r.End == 0 {
		return 0
	}
	return r.End - r.Start + 1
}

// Resources parses a resource file; the index is the BAR's.
func Resources(text string) ([]Resource, error) {
	var rs []Resource
	for line := range strings.Lines(text) {
		var r Resource
		if _, err := fmt.Sscanf(line, "0x%x 0x%x 0x%x", &r.Start, &r.End, &r.Flags); err != nil {
			return nil, fmt.Errorf("golden: resource line %q: %w", line, err)
		}
		rs = append(rs, r)
	}
	return rs, nil
}

// Overlap returns two resources that overlap, if there are any.
func Overlap(rs []Resource) (a, b Resource, found bool) {
	used := slices.DeleteFunc(slices.Clone(rs), func(r Resource) bool { return r.Size() == 0 })
	slices.SortFunc(used, func(a, b Resource) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	for i := 1; i < len(used); i++ {
		if used[i].Start <= used[i-1].End {
			return used[i-1], used[i], true
		}
	}
	return a, b, false
}
