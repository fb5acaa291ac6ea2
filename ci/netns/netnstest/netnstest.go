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

// Resets are the counters of a network's kernel of connections that a reset ended, and
// of resets that it sent.
func Resets(t *testing.T, n *netns.Network) string {
	t.Helper()
	var b []byte
	if err := n.Do(func() (err error) {
		b, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var names, values []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == "Tcp:" {
			names, values = values, f
		}
	}
	var out []string
	for i, name := range names {
		if name == "EstabResets" || name == "OutRsts" {
			out = append(out, name+" "+values[i])
		}
	}
	if len(out) != 2 {
		t.Fatalf("counters of the kernel:\n%s", b)
	}
	return strings.Join(out, ", ")
}
