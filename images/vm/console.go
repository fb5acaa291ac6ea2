// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"io"
	"regexp"
	"sync"
)

const (
	maxLog  = 16 << 20 // bytes of one log kept
	maxLine = 4096     // bytes of a line looked at
	maxTail = 4096     // bytes remembered for messages
)

// A console stores what comes out of a pipe and looks at each line of it.
type console struct {
	mu     sync.Mutex
	to     io.Writer // the log file; nil for none
	mirror io.Writer // nil for none
	room   int64
	line   []byte
	tail   []byte
	watch  func(line string)
}

func newConsole(to io.Writer, watch func(line string)) *console {
	return &console{to: to, room: maxLog, watch: watch}
}

// Write takes all of p whatever becomes of it: a stalled log must not stall QEMU.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mirror != nil {
		c.mirror.Write(p) //nolint:errcheck // a nicety
	}
	if c.to != nil && c.room > 0 {
		q := p[:min(int64(len(p)), c.room)]
		c.to.Write(q) //nolint:errcheck // a full disk is no reason to stop
		if c.room -= int64(len(q)); c.room == 0 {
			io.WriteString(c.to, "\n[log is full]\n") //nolint:errcheck // as above
		}
	}
	c.tail = append(c.tail, p...)
	if n := len(c.tail); n > maxTail {
		c.tail = append(c.tail[:0], c.tail[n-maxTail:]...)
	}
	for rest := p; len(rest) > 0; {
		part, after, whole := bytes.Cut(rest, []byte{'\n'})
		rest = after
		c.line = append(c.line, part[:min(len(part), maxLine-len(c.line))]...)
		if whole {
			if c.watch != nil {
				c.watch(string(bytes.TrimRight(c.line, "\r")))
			}
			c.line = c.line[:0]
		}
	}
	return len(p), nil
}

// Tail returns the last lines written, at most n.
func (c *console) Tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(c.tail), []byte{'\n'})
	lines = lines[max(0, len(lines)-n):]
	return string(bytes.Join(lines, []byte{'\n'}))
}

// panicText returns why the kernel panicked if line says so. A test's output may
// talk of panics too, so the kernel's time stamp, or the line's start, comes before.
func panicText(line string) (string, bool) {
	m := panicLine.FindStringSubmatch(line)
	if m == nil {
		return "", false
	}
	return m[1], true
}

var panicLine = regexp.MustCompile(`^(?:<\d+>)?(?:\[ *\d+\.\d+\] *(?:\[[^\]]*\] *)?)?Kernel panic - not syncing: *(.*)`)
