// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is where a benchmark ran.
type Machine struct {
	Processor       string `json:"processor"`
	Processors      int    `json:"processors"`
	Kernel          string `json:"kernel"`
	Accel           string `json:"accel"`
	QEMU            string `json:"qemu"`
	GuestProcessors int    `json:"guest_processors"`
	GuestKernel     string `json:"guest_kernel"`
	Go              string `json:"go"`
	Revision        string `json:"revision"` // of the sources, with a plus if they were changed
}

// ThisMachine is what can be said without a VM; source is the root of the module.
func ThisMachine(source string) Machine {
	m := Machine{Processor: "unknown processor", Processors: runtime.NumCPU(), Go: runtime.Version(), Revision: revision(source)}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.Processor = processor(b, m.Processor)
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return m
}

// processor reads the first processor's name from /proc/cpuinfo.
func processor(cpuinfo []byte, unknown string) string {
	s := bufio.NewScanner(bytes.NewReader(cpuinfo))
	for s.Scan() {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return unknown
}

// revision asks git.
func revision(source string) string {
	git := func(args ...string) (string, bool) {
		cmd := exec.Command("git", append([]string{"-C", source}, args...)...)
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err == nil
	}
	r, ok := git("rev-parse", "--short=12", "HEAD")
	if !ok {
		return "unknown"
	}
	if changed, ok := git("status", "--porcelain", "--untracked-files=no"); !ok || changed != "" {
		r += "+"
	}
	return r
}
