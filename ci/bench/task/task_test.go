// SPDX-License-Identifier: Apache-2.0

package task_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"toebox/ci/bench/task"
)

// TestCheck: what a guest would be at a loss with is refused.
func TestCheck(t *testing.T) {
	good := task.Task{Side: task.Adapter, Kind: task.Send, Conns: 1, Size: 1, For: 1}
	for name, k := range map[string]struct {
		change func(*task.Task)
		ok     bool
	}{
		"good":               {func(*task.Task) {}, true},
		"set-up":             {func(t *task.Task) { *t = task.Task{Side: task.Virtio, Kind: task.SetUp} }, true},
		"connect":            {func(t *task.Task) { t.Kind, t.Conns, t.Size = task.Connect, 0, 0 }, true},
		"polling":            {func(t *task.Task) { t.Mode = task.Poll }, true},
		"bulk":               {func(t *task.Task) { t.Kind, t.For = task.Bulk, 0 }, true},
		"bulk of the kernel": {func(t *task.Task) { t.Kind, t.Side = task.Bulk, task.Virtio }, false},
		"bulk of none":       {func(t *task.Task) { t.Kind, t.Conns = task.Bulk, 0 }, false},
		"accept":             {func(t *task.Task) { t.Kind, t.Conns, t.Size = task.Accept, 0, 0 }, true},
		"idle":               {func(t *task.Task) { t.Kind, t.For = task.Idle, 0 }, true},
		"idle, none":         {func(t *task.Task) { t.Kind, t.Conns = task.Idle, 0 }, false},
		"map":                {func(t *task.Task) { t.Kind, t.Conns = task.Map, 0 }, true},
		"map nothing":        {func(t *task.Task) { t.Kind, t.Size = task.Map, 0 }, false},
		"map for the kernel": {func(t *task.Task) { t.Kind, t.Side = task.Map, task.Virtio }, false},
		"no side":            {func(t *task.Task) { t.Side = "" }, false},
		"unknown kind":       {func(t *task.Task) { t.Kind = "dance" }, false},
		"unknown mode":       {func(t *task.Task) { t.Mode = "sleep" }, false},
		"no time":            {func(t *task.Task) { t.For = 0 }, false},
		"no bytes":           {func(t *task.Task) { t.Size = 0 }, false},
		"no connections":     {func(t *task.Task) { t.Conns = 0 }, false},
		"negative":           {func(t *task.Task) { t.Conns = -1 }, false},
		"too many":           {func(t *task.Task) { t.Conns = task.MaxConns + 1 }, false},
		"too large":          {func(t *task.Task) { t.Size = task.MaxSize + 1 }, false},
		"for ever":           {func(t *task.Task) { t.For = task.MaxTime + 1 }, false},
		"before the start":   {func(t *task.Task) { t.Warm = -1 }, false},
		"a start for ever":   {func(t *task.Task) { t.Warm = task.MaxTime + 1 }, false},
		"no time to connect": {func(t *task.Task) { t.Kind, t.For = task.Connect, 0 }, false},
	} {
		k2 := good
		k.change(&k2)
		if err := k2.Check(); (err == nil) != k.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLines: both halves read what the other writes, and what is no line of theirs
// is an error.
func TestLines(t *testing.T) {
	in := `{"side":"adapter","kind":"send","peer":"10.0.2.2:4000","conns":8,"size":65536,"direct":true,"mode":"hybrid","warm":2,"for":3}` + "\n" +
		`{"begun":true}` + "\n" +
		`{"result":{"bytes":1,"ops":2,"elapsed":3,"busy":4,"own":5,"interrupts":6,"doorbells":7,"median":8,"p99":9}}` + "\n" +
		`{"error":"no"}` + "\n" + "nonsense\n"
	var out bytes.Buffer
	l := task.NewLines(strings.NewReader(in), &out)
	var k task.Task
	if err := l.Read(&k); err != nil || k != (task.Task{
		Side: task.Adapter, Kind: task.Send, Peer: "10.0.2.2:4000", Conns: 8, Size: 65536, Direct: true, Mode: task.Hybrid, Warm: 2, For: 3 * time.Nanosecond,
	}) {
		t.Fatalf("%+v, %v", k, err)
	}
	answers := make([]task.Answer, 3)
	for i := range answers {
		if err := l.Read(&answers[i]); err != nil {
			t.Fatal(err)
		}
	}
	if !answers[0].Begun || answers[2].Error != "no" || *answers[1].Result != (task.Result{
		Bytes: 1, Ops: 2, Elapsed: 3, Busy: 4, Own: 5, Interrupts: 6, Doorbells: 7, Median: 8, P99: 9,
	}) {
		t.Errorf("%+v", answers)
	}
	if err := l.Write(k); err != nil {
		t.Fatal(err)
	}
	for _, a := range answers {
		if err := l.Write(a); err != nil {
			t.Fatal(err)
		}
	}
	if want, _, _ := strings.Cut(in, "nonsense"); out.String() != want {
		t.Errorf("wrote\n%s", &out)
	}
	var none task.Answer
	if err := l.Read(&none); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("nonsense: %v", err)
	}
	if err := l.Read(&none); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
	if err := task.NewLines(strings.NewReader(strings.Repeat("x", task.MaxLine+1)), nil).Read(&none); err == nil || err == io.EOF {
		t.Errorf("a line without end: %v", err)
	}
}
