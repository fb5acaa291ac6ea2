// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"
	"testing"

	"toebox/ci/runner"
)

// TestScan: functions of the kit count one by one, other tests as a whole, and
// a package that does not build counts as a failure.
func TestScan(t *testing.T) {
	const stream = `{"Action":"start","Package":"a"}
{"Action":"run","Package":"a","Test":"TestInproc"}
{"Action":"run","Package":"a","Test":"TestInproc/TestX"}
{"Action":"pass","Package":"a","Test":"TestInproc/TestX"}
{"Action":"run","Package":"a","Test":"TestInproc/TestY"}
{"Action":"output","Package":"a","Test":"TestInproc/TestY","Output":"why\n"}
{"Action":"fail","Package":"a","Test":"TestInproc/TestY"}
{"Action":"fail","Package":"a","Test":"TestInproc"}
{"Action":"run","Package":"a","Test":"TestOther"}
{"Action":"run","Package":"a","Test":"TestOther/sub"}
{"Action":"pass","Package":"a","Test":"TestOther/sub"}
{"Action":"pass","Package":"a","Test":"TestOther"}
{"Action":"fail","Package":"a","Elapsed":4.5}
not an event
{"ImportPath":"b [b.test]","Action":"build-output","Output":"b.go:1: broken\n"}
{"Action":"output","Package":"b","Output":"FAIL b [build failed]\n"}
{"Action":"fail","Package":"b","Elapsed":9}
{"Action":"pass","Package":"toebox/c","Elapsed":0.2}
`
	var c runner.Collector
	s := newScan(c.Sink())
	s.read(strings.NewReader(stream))
	sum, red := s.count(c.Results)
	if want := (runner.Summary{Passed: 2, Failed: 2}); sum != want {
		t.Errorf("counted %v, want %v", sum, want)
	}
	if got, want := s.slowest(2), "b 9s, a 4s"; got != want {
		t.Errorf("slowest are %q, want %q", got, want)
	}
	text := strings.Join(red, "")
	for _, want := range []string{"TestInproc/TestY\nwhy\nagain: go test -race -run '^TestInproc$/^TestY$' a\n", "b.go:1: broken"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestCounter(t *testing.T) {
	var c counter
	io.WriteString(&c, "ok something\n3 passed, 1 fai")
	io.WriteString(&c, "led, 2 skipped\nlast words\n")
	if want := (runner.Summary{Passed: 3, Failed: 1, Skipped: 2}); c.sum != want {
		t.Errorf("counted %v, want %v", c.sum, want)
	}
}

func TestRequire(t *testing.T) {
	for _, c := range []struct{ list, want string }{
		{"", "qemu"},
		{"qemu", "qemu"},
		{"tshark", "tshark,qemu"},
		{"tshark,qemu,kvm", "tshark,qemu,kvm"},
		{"qemu-old", "qemu-old,qemu"},
	} {
		if got := require(c.list, "qemu"); got != c.want {
			t.Errorf("%q and qemu: %q, want %q", c.list, got, c.want)
		}
	}
}
