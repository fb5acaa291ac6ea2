// SPDX-License-Identifier: Apache-2.0

package vfiousertest

import (
	"bytes"
	"fmt"
	"os"
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

// settling is how long goroutines of finished tests may take to end.
const settling = time.Minute

// Main runs the tests of a package and exits. It fails if they leave file
// descriptors, mappings of guest memory, or goroutines in this module's code.
func Main(m *testing.M) {
	// The runtime's poller opens descriptors of its own when first used.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	before, _ := openFiles()
	code := m.Run()
	if code == 0 {
		if leaks := findLeaks(before); len(leaks) > 0 {
			fmt.Fprintln(os.Stderr, "leaked:\n"+strings.Join(leaks, "\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// findLeaks waits for goroutines to end and lists what is left.
func findLeaks(before map[string]string) []string {
	var leaks []string
	for deadline := time.Now().Add(settling); ; {
		leaks = append(append(goroutines(), files(before)...), mappings()...)
		if len(leaks) == 0 || time.Now().After(deadline) {
			return leaks
		}
		<-time.After(10 * time.Millisecond)
	}
}

// openFiles returns the open file descriptors and what they are.
func openFiles() (map[string]string, error) {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	fds := make(map[string]string)
	for _, e := range dir {
		// The directory itself was one of them and is gone now.
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fds[e.Name()] = name
		}
	}
	return fds, nil
}

func files(before map[string]string) []string {
	now, err := openFiles()
	if err != nil {
		return nil
	}
	var leaks []string
	for fd, name := range now {
		if _, ok := before[fd]; ok {
			continue
		}
		leaks = append(leaks, "file descriptor "+fd+": "+name)
	}
	return leaks
}

func mappings() []string {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil
	}
	var leaks []string
	for _, line := range strings.Split(string(maps), "\n") {
		if strings.Contains(line, "memfd:vfiousertest") {
			leaks = append(leaks, "mapping "+line)
		}
	}
	return leaks
}

func goroutines() []string {
	var b bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&b, 2); err != nil {
		return nil
	}
	var leaks []string
	for _, g := range strings.Split(b.String(), "\n\n") {
		if strings.Contains(g, "toebox/") && !strings.Contains(g, "vfiousertest.Main(") {
			leaks = append(leaks, g)
		}
	}
	return leaks
}
