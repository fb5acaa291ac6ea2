// SPDX-License-Identifier: Apache-2.0

package toolchain

import "fmt"

// Progress is told what long work is doing. A nil Progress is silent.
type Progress interface {
	// Step is a line worth keeping.
	Step(line string)
	// Amount says how far a download is, in bytes; it may come often.
	Amount(what string, done, total int64)
}

func step(p Progress, format string, args ...any) {
	if p != nil {
		p.Step(fmt.Sprintf(format, args...))
	}
}
