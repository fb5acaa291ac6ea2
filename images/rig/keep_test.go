// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"toebox/vfio-user/keeper"
)

// fakeKeeper is the other end of a kept device: the test plays the keeper.
func fakeKeeper(t *testing.T) (k *kept, keeperEnd net.Conn, said *[]string) {
	t.Helper()
	mine, file, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	its, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	its.SetDeadline(time.Now().Add(reloadPatience))
	said = new([]string)
	k = &kept{
		conn: mine, ready: true, args: []string{"--fd={fd}"}, name: "adapter", log: filepath.Join(t.TempDir(), deviceLog), program: filepath.Join(t.TempDir(), "firmware-0/p"),
		say:  func(format string, args ...any) { *said = append(*said, fmt.Sprintf(format, args...)) },
		turn: make(chan struct{}, 1), answers: make(chan keeper.Report, 1), done: make(chan struct{}),
	}
	go k.listen()
	t.Cleanup(func() { its.Close(); k.close() })
	return k, its, said
}

// TestReports: what a keeper reports is told in words a firmware developer
// understands, each death once.
func TestReports(t *testing.T) {
	k, its, said := fakeKeeper(t)
	trace := "time=1 level=INFO msg=\"adapter is up\"\npanic: boom\n\ngoroutine 1 [running]:\nmain.f()\n" + strings.Repeat("more\n", 100)
	enc := json.NewEncoder(its)
	for _, r := range []keeper.Report{
		{Kind: "started", Generation: 1, PID: 7}, {Kind: "ready", Generation: 1},
		{Kind: "exited", Generation: 1, Error: "exit status 2", Trace: trace}, {Kind: "paused", Generation: 1, Took: 50 * time.Millisecond},
		{Kind: "started", Generation: 2, PID: 8}, {Kind: "ready", Generation: 2},
		{Kind: "exited", Generation: 2, Error: "exit status 2", Trace: trace}, {Kind: "paused", Generation: 2, Took: 800 * time.Millisecond},
		{Kind: "something new"},
		{Kind: "ready", Generation: 3}, {Kind: "hung", Generation: 3, Error: "no answer to X"},
		{Kind: "exited", Generation: 3, Expected: true},
	} {
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(its, "no JSON\n"); err != nil {
		t.Fatal(err)
	}
	its.Close()
	<-k.done
	all := strings.Join(*said, "\n")
	for _, want := range []string{
		"died (generation 1, exit status 2)", k.log, "| panic: boom", "| main.f()",
		"generation 2 serves", "died 2 times in a row; the next start is in 800ms", "does not answer (no answer to X)",
	} {
		if strings.Count(all, want) != 1 {
			t.Errorf("%d times %q in\n%s", strings.Count(all, want), want, all)
		}
	}
	if n := strings.Count(all, "| "); n != traceLines {
		t.Errorf("%d lines of the trace", n)
	}
}

// TestDiesAtOnce: a device that lasted, and then dies again and again before it
// serves, is told of as such.
func TestDiesAtOnce(t *testing.T) {
	k, _, said := fakeKeeper(t)
	k.ready, k.since = true, time.Now().Add(-time.Hour)
	dies := keeper.Report{Kind: "exited", Generation: 1, Error: "exit status 2", Trace: "panic: boom\n\ngoroutine 1 [running]:\n"}
	k.tell(dies)
	k.tell(dies)
	k.tell(keeper.Report{Kind: keeper.EventFailed.String(), Error: "exec format error"})
	k.tell(keeper.Report{Kind: "paused", Took: 800 * time.Millisecond})
	all := strings.Join(*said, "\n")
	if n := strings.Count(all, "panic: boom"); n != 1 || !strings.Contains(all, "died 3 times in a row") || !strings.Contains(all, "exec format error") {
		t.Errorf("%d traces in\n%s", n, all)
	}
}

// TestReplaceOrder: an order names the new program with the same arguments, and the
// answer decides which one stays.
func TestReplaceOrder(t *testing.T) {
	k, its, _ := fakeKeeper(t)
	old := k.program
	orders, answers := json.NewDecoder(its), json.NewEncoder(its)
	for _, test := range []struct{ fails, program, serves string }{
		{"", "/r/firmware-1/p", "/r/firmware-1/p"},
		{"another device: BAR0", "/r/firmware-2/p", "/r/firmware-1/p"},
		{"", "/r/firmware-3/p", "/r/firmware-3/p"},
	} {
		got := make(chan error, 1)
		go func() {
			_, err := k.replace(t.Context(), test.program)
			got <- err
		}()
		var o keeper.Order
		if err := orders.Decode(&o); err != nil || strings.Join(o.Server, " ") != test.program+" --fd={fd}" {
			t.Fatalf("order %q, %v", o.Server, err)
		}
		if test.fails != "" {
			answers.Encode(keeper.Report{Kind: "exited", Generation: 9, Error: "exit status 1", Trace: "why"})
		}
		answers.Encode(keeper.Report{Kind: keeper.KindReplaced, Generation: 9, Error: test.fails})
		err := <-got
		if (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) {
			t.Errorf("%q: %v", test.fails, err)
		}
		if k.program != test.serves {
			t.Errorf("%s serves, not %s (first %s)", k.program, test.serves, old)
		}
	}
	its.Close()
	if _, err := k.replace(t.Context(), "/r/firmware-4/p"); err == nil {
		t.Error("replaced without a keeper")
	}
}

// TestLoadSocket: what is no load of a program in the run's folder is refused, and
// whoever says nothing is not waited for at the end.
func TestLoadSocket(t *testing.T) {
	p := testPaths(t)
	f, err := newRun(p, time.Now(), 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	k, _, _ := fakeKeeper(t)
	i := &Instance{Record: f.Record, Dir: f.dir, devices: []*device{{kept: k}}}
	l, err := newLoader(i)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(i.LoadSocket()); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st, err)
	}
	program, err := NewFirmware(p, f.Record)
	if err != nil {
		t.Fatal(err)
	}
	for program, says := range map[string]string{
		"": "no program in the folder", "/bin/true": "no program in the folder", program: "is no program",
		filepath.Join(f.dir, "device.log"): "no program in the folder", filepath.Join(f.dir, "firmware-x/../../y/p"): "no program in the folder",
	} {
		if a, err := SendLoad(t.Context(), f.Record, Load{Program: program}, nobody); err != nil || !strings.Contains(a.Error, says) {
			t.Errorf("%q: %+v, %v", program, a, err)
		}
	}
	for _, text := range []string{"{}}\n", "\n", "null\n", strings.Repeat("x", maxLoadLine) + "\n"} {
		conn, err := net.Dial("unix", i.LoadSocket())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(reloadPatience))
		var a Loaded
		_, err = io.WriteString(conn, text)
		if err == nil {
			err = json.NewDecoder(conn).Decode(&a)
		}
		// The answer to a line that is too long may be lost with what was not read.
		if (err != nil || a.Error == "") && len(text) < maxLoadLine {
			t.Errorf("%.20q: %+v, %v", text, a, err)
		}
		conn.Close()
	}
	var silent []net.Conn
	for range maxLoaders + 2 {
		conn, err := net.Dial("unix", i.LoadSocket())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		silent = append(silent, conn)
	}
	l.close()
	for _, c := range silent {
		c.SetDeadline(time.Now().Add(reloadPatience))
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d bytes for nothing", n)
		}
	}
	if _, err := SendLoad(t.Context(), f.Record, Load{}, nobody); err == nil || !strings.Contains(err.Error(), "without an adapter") {
		t.Errorf("after the end: %v", err)
	}
	i.devices = nil
	if _, err := i.Load(t.Context(), Load{Program: program}); err == nil || !strings.Contains(err.Error(), "without an adapter") {
		t.Errorf("without an adapter: %v", err)
	}
}
