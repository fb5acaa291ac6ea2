// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"toebox/ci/bench"
	"toebox/ci/bench/agent"
	"toebox/ci/bench/task"
	"toebox/ci/rig"
	"toebox/guestdriver"
	"toebox/vfio-user/vfiousertest"
)

func TestMain(m *testing.M) { vfiousertest.Main(m) }

// patience bounds a test.
const patience = 2 * time.Minute

// pair is an agent whose adapter is function calls away, and the peer.
func pair(t *testing.T) (*agent.Agent, *bench.Peer) {
	t.Helper()
	return pairWith(t, nil)
}

func pairWith(t *testing.T, threads func(int) int) (*agent.Agent, *bench.Peer) {
	t.Helper()
	r, err := rig.Inproc(rig.Config{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	p, err := bench.NewPeer("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	proc := t.TempDir()
	for name, text := range map[string]string{
		"stat":       "cpu 1 0 1 100 0 0 0\ncpu0 1 0 1 100 0 0 0\n",
		"meminfo":    "MemTotal: 10 kB\nMemAvailable:    5 kB\n",
		"interrupts": "CPU0\n 1: 5 MSIX-0000:00:05.0 x\n",
	} {
		if err := os.WriteFile(filepath.Join(proc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := agent.New(agent.Config{
		Threads: threads,
		Proc:    proc,
		Bus: func() (guestdriver.Bus, string, error) {
			b, err := r.Env().Open(t.Context())
			return b, "0000:00:05.0", err
		},
		Link: func(address string) (string, error) {
			if address != "10.0.3.15/24" {
				return "", errors.New("the address is " + address)
			}
			return "0000:00:06.0", nil
		},
	})
	t.Cleanup(func() {
		for range 2 {
			if err := errors.Join(a.Close(), p.Close()); err != nil {
				t.Error(err)
			}
		}
	})
	return a, p
}

// TestThreads: who does one thing at a time has one thread meanwhile.
func TestThreads(t *testing.T) {
	var calls []int
	a, p := pairWith(t, func(n int) int {
		calls = append(calls, n)
		return 7
	})
	for _, test := range []struct {
		kind  task.Kind
		conns int
		want  []int
	}{
		{task.Echo, 1, []int{1, 7}},
		{task.Echo, 2, nil},
		{task.Connect, 1, []int{1, 7}},
		{task.Send, 1, nil},
	} {
		calls = nil
		k := task.Task{
			Side: task.Virtio, Kind: test.kind, Conns: test.conns, Size: 64, For: 5 * time.Millisecond,
			Peer: net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Port(test.kind))),
		}
		if _, err := a.Do(t.Context(), &k, func() error { return nil }); err != nil {
			t.Fatalf("%s: %v", test.kind, err)
		}
		if !slices.Equal(calls, test.want) {
			t.Errorf("%s by %d: threads %v, want %v", test.kind, test.conns, calls, test.want)
		}
	}
}

// TestTasks: both sides do all kinds of tasks, one after another, on a line of JSON
// each.
func TestTasks(t *testing.T) {
	a, p := pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	in, toAgent := io.Pipe()
	fromAgent, out := io.Pipe()
	served := make(chan error, 1)
	go func() {
		err := a.Serve(ctx, in, out)
		out.CloseWithError(err)
		served <- err
	}()
	unblock := context.AfterFunc(ctx, func() { toAgent.CloseWithError(ctx.Err()) })
	defer unblock()
	lines := task.NewLines(fromAgent, toAgent)
	do := func(k task.Task) task.Answer {
		t.Helper()
		if err := lines.Write(k); err != nil {
			t.Fatal(err)
		}
		var first, second task.Answer
		if err := lines.Read(&first); err != nil {
			t.Fatal(err)
		}
		if !first.Begun {
			return first
		}
		if err := lines.Read(&second); err != nil {
			t.Fatal(err)
		}
		if k.Kind == task.Idle && second.Begun { // they are there
			second = task.Answer{}
			if err := lines.Read(&second); err != nil {
				t.Fatal(err)
			}
		}
		return second
	}
	if k := do(task.Task{Side: task.Adapter, Kind: task.Echo, Conns: 1, Size: 1, For: 1, Peer: "10.0.2.2:1"}); !strings.Contains(k.Error, "not set up") {
		t.Errorf("before it is set up: %+v", k)
	}
	for _, k := range []task.Task{{Side: task.Virtio, Kind: task.SetUp, Peer: "10.0.3.15/24"}, {Side: task.Adapter, Kind: task.SetUp}} {
		if k := do(k); k.Error != "" || k.Result == nil {
			t.Fatalf("set up: %+v", k)
		}
	}
	for _, side := range []task.Side{task.Virtio, task.Adapter} {
		host := map[task.Side]string{task.Virtio: "127.0.0.1", task.Adapter: "10.0.2.2"}[side]
		for name, k := range map[string]task.Task{
			"send":             {Kind: task.Send, Conns: 2, Size: 4096},
			"send, direct":     {Kind: task.Send, Conns: 2, Size: 64 << 10, Direct: true},
			"receive":          {Kind: task.Receive, Conns: 2, Size: 4096},
			"receive, direct":  {Kind: task.Receive, Conns: 2, Size: 64 << 10, Direct: true},
			"echo":             {Kind: task.Echo, Conns: 2, Size: 64, Mode: task.Hybrid},
			"echo, polling":    {Kind: task.Echo, Conns: 1, Size: 64, Mode: task.Poll},
			"connect":          {Kind: task.Connect, Conns: 1},
			"bulk":             {Kind: task.Bulk, Conns: 300},
			"idle":             {Kind: task.Idle, Conns: 50},
			"map":              {Kind: task.Map, Size: 64 << 10, Direct: true},
			"connect after it": {Kind: task.Connect, Conns: 2},
		} {
			k.Side, k.For, k.Warm = side, 5*time.Millisecond, time.Millisecond
			k.Peer = net.JoinHostPort(host, strconv.Itoa(p.Port(k.Kind)))
			got := do(k)
			if side == task.Virtio && (k.Direct || k.Kind == task.Bulk || k.Kind == task.Map) {
				if got.Error == "" {
					t.Errorf("%s over %s: %+v", name, side, got)
				}
				continue
			}
			r := got.Result
			switch {
			case r == nil:
				t.Fatalf("%s over %s: %+v", name, side, got)
			case k.Kind == task.Map:
				if r.Bytes != 64<<10 || r.Elapsed <= 0 || r.Median != r.Elapsed {
					t.Errorf("%s over %s: %+v", name, side, r)
				}
			case k.Kind == task.Idle:
				if r.Ops != 50 {
					t.Errorf("%s over %s: %+v", name, side, r)
				}
			case k.Kind == task.Bulk:
				if r.Ops != 300 {
					t.Errorf("%s over %s: %+v", name, side, r)
				}
			case r.Elapsed < k.For || r.Busy <= 0 || r.Interrupts != 0:
				t.Errorf("%s over %s: %+v", name, side, r)
			case k.Size > 0 && r.Bytes == 0:
				t.Errorf("%s over %s moved nothing: %+v", name, side, r)
			case (k.Kind == task.Connect || k.Kind == task.Echo) && (r.Ops == 0 || r.Median <= 0 || r.P99 < r.Median):
				t.Errorf("%s over %s: %+v", name, side, r)
			}
		}
		dead := task.Task{Side: side, Kind: task.Echo, Conns: 1, Size: 1, For: 1, Peer: net.JoinHostPort(host, "1")}
		if got := do(dead); got.Error == "" {
			t.Errorf("nobody there, over %s: %+v", side, got)
		}
	}
	toAgent.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
