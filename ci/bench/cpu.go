// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of times below /proc (USER_HZ).
const tick = 10 * time.Millisecond

// virtualProcessor starts the names of QEMU's threads that run the guest
// (-name debug-threads=on).
const virtualProcessor = "CPU "

// spent is the time that processes took so far.
type spent struct {
	at                  time.Time
	qemu, outside       time.Duration // all of QEMU; its threads that do not run the guest
	memory              int64         // of the device's processes, resident, bytes
	device, self, whole time.Duration // whole: of all processors
}

// readSpent reads below a /proc: of QEMU, of the processes of the device, of this one.
func readSpent(proc string, qemu int, device []int) (s spent, err error) {
	s.at = time.Now()
	threads, err := filepath.Glob(filepath.Join(proc, strconv.Itoa(qemu), "task", "*", "stat"))
	if err != nil {
		return s, err
	}
	for _, t := range threads {
		name, d, err := times(t)
		if err != nil {
			continue // it has ended
		}
		s.qemu += d
		if !strings.HasPrefix(name, virtualProcessor) {
			s.outside += d
		}
	}
	for _, pid := range device {
		_, d, err := times(filepath.Join(proc, strconv.Itoa(pid), "stat"))
		if err != nil {
			return s, fmt.Errorf("bench: %w", err)
		}
		s.device += d
		if s.memory, err = resident(filepath.Join(proc, strconv.Itoa(pid), "statm"), s.memory); err != nil {
			return s, fmt.Errorf("bench: %w", err)
		}
	}
	if _, s.self, err = times(filepath.Join(proc, "self", "stat")); err != nil {
		return s, fmt.Errorf("bench: %w", err)
	}
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return s, fmt.Errorf("bench: %w", err)
	}
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	for i, f := range strings.Fields(string(line)) {
		n, err := strconv.ParseUint(f, 10, 63)
		switch {
		case i == 0 || i > 8: // the name; a guest's time is in the user's
		case err != nil:
			return s, fmt.Errorf("bench: %s/stat: %w", proc, err)
		case i == 4 || i == 5: // idle, waiting for disks
		default:
			s.whole += time.Duration(n) * tick
		}
	}
	return s, nil
}

// times reads the name and the time in user and kernel mode of a process or thread
// (proc_pid_stat(5)).
func times(path string) (name string, d time.Duration, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", 0, err
	}
	// The name in parentheses may hold anything, parentheses included.
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return "", 0, fmt.Errorf("%s: no name", path)
	}
	f := strings.Fields(string(b[end+1:]))
	const user, system = 11, 12 // utime and stime, counted from the state
	if len(f) <= system {
		return "", 0, fmt.Errorf("%s: %d fields", path, len(f))
	}
	for _, s := range f[user : system+1] {
		n, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			return "", 0, fmt.Errorf("%s: %w", path, err)
		}
		d += time.Duration(n) * tick
	}
	return string(b[open+1 : end]), d, nil
}

// resident adds the memory of a process that is resident and no file's (proc_pid_statm(5)),
// in bytes: what a device shares with the guest is not its own.
func resident(path string, sum int64) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var size, all, shared int64
	if _, err := fmt.Sscan(string(b), &size, &all, &shared); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return sum + (all-shared)*int64(os.Getpagesize()), nil
}

// fill puts what was spent since before into a sample.
func (s *spent) fill(before *spent, to *Sample) {
	device := s.device - before.device
	to.Device = s.outside - before.outside + device
	to.Host = s.qemu - before.qemu + device
	to.Other = max(s.whole-before.whole-to.Host-(s.self-before.self), 0)
	to.Window = s.at.Sub(before.at)
}
