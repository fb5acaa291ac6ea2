// SPDX-License-Identifier: Apache-2.0

package firmware_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails when a goroutine outlives the tests.
func TestMain(m *testing.M) {
	code := m.Run()
	end := time.Now().Add(time.Minute)
	left := leaked()
	for left != "" && time.Now().Before(end) {
		runtime.Gosched()
		left = leaked()
	}
	if left != "" && code == 0 {
		fmt.Fprintf(os.Stderr, "goroutines are left:\n%s", left)
		code = 1
	}
	os.Exit(code)
}

// leaked are the stacks of goroutines of ours and of the protocol stack.
func leaked() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for i, g := range strings.Split(string(buf), "\n\n") {
		if i > 0 && (strings.Contains(g, "toebox/") || strings.Contains(g, "gvisor.dev/")) {
			left = append(left, g)
		}
	}
	return strings.Join(left, "\n\n")
}
