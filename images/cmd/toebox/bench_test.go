// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"toebox/ci/bench"
	"toebox/ci/netns/netnstest"
	"toebox/images/rig"
	"toebox/images/toolchain/toolchaintest"
)

// TestBench: the command measures a few cases over tap devices in a namespace of its own and
// leaves table, figures and page.
func TestBench(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine, some seconds: run without -short")
	}
	toolchaintest.QEMU(t)
	toolchaintest.Kernel(t)
	if !netnstest.Here(t) {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*boot)
	defer cancel()
	dir, err := os.MkdirTemp("", "tbx") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	figures, page := filepath.Join(dir, "f.json"), filepath.Join(dir, "p.html")
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "bench", "--quick", "--rounds=1", "--json", figures, "--page", page, "one after another|accept")
	cmd.Env = append(os.Environ(), asCommand+"=1", "XDG_STATE_HOME="+filepath.Join(dir, "s"), "XDG_RUNTIME_DIR="+dir)
	var said bytes.Buffer
	cmd.Stderr = &said
	table, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &said)
	}
	if !strings.Contains(string(table), "Dial, rate (/s)") || !strings.Contains(string(table), "tap devices") {
		t.Errorf("table:\n%s", table)
	}
	b, err := os.ReadFile(figures)
	if err != nil {
		t.Fatal(err)
	}
	var r bench.Report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if !r.Counts || r.Network != "tap" || len(r.Failed) > 0 || len(r.Rows) != 10 || r.Rows[0].Met == nil ||
		r.Machine.QEMU == "" || r.Machine.GuestKernel == "" || r.Machine.GuestProcessors != 2 {
		t.Errorf("%s", b)
	}
	if b, err := os.ReadFile(page); err != nil || !bytes.Contains(b, []byte("<svg ")) {
		t.Errorf("page: %v\n%s", err, b)
	}
}

// TestJudge: a quick run fails when a ratio is far from what is published, or a case
// could not be measured.
func TestJudge(t *testing.T) {
	ratio := func(v float64) []bench.Row {
		return []bench.Row{{Case: "send, 1 connection, 64 KiB", Way: "zero-copy", Metric: "throughput", More: true, Ratio: &v}}
	}
	published, err := bench.ReadPublished()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		rows   []bench.Row
		failed []string
		said   string
		status int
	}{
		{name: "good", rows: ratio(1000)},
		{name: "far away", rows: ratio(0.01), said: "\nWORSE: send, 1 connection, 64 KiB: zero-copy, throughput: 0.010x, less than half of the published ", status: 1},
		{name: "not measured", rows: ratio(1000), failed: []string{"it"}, status: 1},
	} {
		var out bytes.Buffer
		err := (&BenchCmd{Quick: true}).judge(&app{stdout: &out}, &bench.Report{Counts: true, Pace: bench.QuickPace(), Rows: c.rows, Failed: c.failed}, published)
		if rig.ExitCode(err) != c.status || !strings.HasPrefix(out.String(), c.said) || (c.said == "") != (out.Len() == 0) {
			t.Errorf("%s: %v, %q", c.name, err, &out)
		}
	}
}
