// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"
)

// TestMain fails the suite when goroutines are left.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	end := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	for code == 0 && runtime.NumGoroutine() > before {
		select {
		case <-tick.C:
			continue
		case <-end:
		}
		fmt.Fprintln(os.Stderr, "goroutines are left:")
		pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		code = 1
	}
	os.Exit(code)
}
