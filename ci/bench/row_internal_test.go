// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// TestSpent reads what a Linux says of QEMU, a device process and the whole machine.
func TestSpent(t *testing.T) {
	proc := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const before, behind = " S 1 7 7 0 -1 4194560 100 0 0 0 ", " 0 0 20 0 5 0 100 200 300\n"
	write("7/task/7/stat", "7 (qemu-system-x86)"+before+"10 20"+behind)
	write("7/task/8/stat", "8 (CPU 0/TCG)"+before+"300 40"+behind)
	write("7/task/9/stat", "9 (CPU 1/TCG)"+before+"5 0"+behind)
	write("11/stat", "11 (a) strange) name)"+before+"100 1"+behind)
	write("12/stat", "12 (keeper)"+before+"2 3"+behind)
	write("11/statm", "5000 300 100 1 0 2000 0\n")
	write("12/statm", "5000 11 10 1 0 2000 0\n")
	write("self/stat", "13 (bench)"+before+"4 4"+behind)
	write("stat", "cpu  400 10 90 1000 50 5 5 10 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	got, err := readSpent(proc, 7, []int{11, 12})
	if err != nil {
		t.Fatal(err)
	}
	want := spent{
		at: got.at, qemu: 3750 * time.Millisecond, outside: 300 * time.Millisecond, device: 1060 * time.Millisecond,
		memory: 201 * int64(os.Getpagesize()),
		self:   80 * time.Millisecond, whole: 5200 * time.Millisecond,
	}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	var s Sample
	got.fill(&spent{at: got.at.Add(-time.Second), qemu: time.Second, outside: 100 * time.Millisecond, device: 60 * time.Millisecond}, &s)
	if s.Device != 1200*time.Millisecond || s.Host != 3750*time.Millisecond || s.Other != 1370*time.Millisecond || s.Window != time.Second {
		t.Errorf("%+v", s)
	}
	if _, err := readSpent(proc, 7, []int{14}); err == nil {
		t.Error("a process that is not there")
	}
	for _, bad := range []string{"", "11 name", "11 (x) S 1", "11 (x)" + before + "x 1" + behind} {
		write("11/stat", bad)
		if _, err := readSpent(proc, 7, []int{11}); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestStats(t *testing.T) {
	if s := Summarize([]float64{3, 1, 2}); s.Median != 2 || s.Min != 1 || s.Max != 3 || !reflect.DeepEqual(s.Values, []float64{3, 1, 2}) {
		t.Errorf("odd: %+v", s)
	}
	if s := Summarize([]float64{4, 1, 2, 3}); s.Median != 2.5 {
		t.Errorf("even: %+v", s)
	}
	if r := ratios([]float64{6, 1, 0, 5}, []float64{2, 0, 0, 10}); !reflect.DeepEqual(r, []float64{3, 0.5}) {
		t.Errorf("ratios %v", r)
	}
}

func TestProcessor(t *testing.T) {
	if p := processor([]byte("processor\t: 0\nmodel name\t: A Fine One\nmodel name\t: B\n"), "none"); p != "A Fine One" {
		t.Error(p)
	}
	if p := processor([]byte("processor : 0\n"), "none"); p != "none" {
		t.Error(p)
	}
}

func TestTexts(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0123: "0.012", 1.234: "1.23", 12.34: "12.3", 1234.5: "1234"} {
		if got := number(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
	for n, want := range map[int]string{64: "64 B", 1400: "1400 B", 4096: "4 KiB", 1 << 20: "1 MiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
