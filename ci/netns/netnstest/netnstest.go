// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"toebox/ci/netns"
	"toebox/images/toolchain/toolchaintest"
)

// child in the environment says that this process is one that Here has started.
const child = "TOEBOX_NETNSTEST"

// grace is what a process that Here has started has left when this one's time is over.
const grace = 10 * time.Second

// Here says whether the test is to go on: networks of the kernel's can be made. If
// they cannot, it runs the test, which must be none of another's parts, in a process in
// a user namespace, and the test ends with what came of that.
func Here(t *testing.T) bool {
	t.Helper()
	err := netns.Try()
	if err == nil {
		return true
	}
	if !errors.Is(err, netns.ErrPrivilege) {
		t.Fatal(err)
	}
	missing := func(err error) { toolchaintest.Missing(t, "tap", "%v", err) }
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	if os.Getenv(child) != "" || !netns.Delegate(cmd) {
		missing(err)
		return false
	}
	if end, ok := t.Deadline(); ok {
		cmd.Args = append(cmd.Args, fmt.Sprintf("-test.timeout=%v", time.Until(end)-grace))
	}
	cmd.Env = append(os.Environ(), child+"=1")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = grace
	if e := cmd.Start(); e != nil {
		missing(fmt.Errorf("%w (in a user namespace: %w)", err, e))
		return false
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("in a user namespace: %v\n%s", err, out.String())
	}
	if strings.Contains(out.String(), "--- SKIP: "+t.Name()+" ") {
		missing(errors.New(out.String()))
	}
	t.Logf("in a user namespace:\n%s", out.String())
	return false
}
