// SPDX-License-Identifier: Apache-2.0

package deadly

import (
	"os"
	"time"

	"toebox/ci/conformance"
)

// Tests are the functions, in the order in which they run.
func Tests() []*conformance.Test {
	return []*conformance.Test{
		{Name: "TestRIG07_APasses", IDs: []string{"RIG07"}, Func: passes},
		{Name: "TestRIG07_BHangs", IDs: []string{"RIG07"}, Limit: time.Second, Func: hangs},
		{Name: "TestRIG07_CPasses", IDs: []string{"RIG07"}, Func: passes},
		{Name: "TestRIG07_DPanics", IDs: []string{"RIG07"}, Func: panics},
		{Name: "TestRIG07_ENeverRuns", IDs: []string{"RIG07"}, Func: passes},
		{Name: "TestRIG07_FNeverRuns", IDs: []string{"RIG07"}, Func: passes},
	}
}

func passes(t *conformance.T) { t.Logf("on %s", t.Env.Rung) }

// hangs waits for nothing, and does not see that its time is over.
func hangs(*conformance.T) { select {} }

// panics ends the kernel.
func panics(t *conformance.T) {
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
		t.Fatalf("cannot end the kernel: %v", err)
	}
	select {}
}
