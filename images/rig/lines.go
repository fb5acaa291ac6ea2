// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"fmt"
	"sync"
	"time"
)

const (
	maxLines    = 256 // that nobody has taken yet
	linesEnding = time.Second
)

// lines passes on what is said to people. Who says something never waits for them: a
// terminal may be stopped (Ctrl-S), a pipe full. What is too much is counted.
type lines struct {
	say  func(format string, args ...any)
	done chan struct{} // closed when all was said

	mu     sync.Mutex
	closed bool
	lost   int
	queue  chan string
}

func newLines(say func(format string, args ...any)) *lines {
	l := &lines{say: say, done: make(chan struct{}), queue: make(chan string, maxLines)}
	go l.pass()
	return l
}

func (l *lines) pass() {
	defer close(l.done)
	for line := range l.queue {
		l.mu.Lock()
		lost := l.lost
		if len(l.queue) == 0 {
			l.lost = 0
		} else {
			lost = 0 // told behind what came before
		}
		l.mu.Unlock()
		l.say("%s", line)
		if lost > 0 {
			l.say("adapter: %d more lines were lost", lost)
		}
	}
}

// add says a line.
func (l *lines) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	select {
	case l.queue <- fmt.Sprintf(format, args...):
	default:
		l.lost++
	}
}

// close waits a moment until all was said.
func (l *lines) close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.queue)
	}
	l.mu.Unlock()
	t := time.NewTimer(linesEnding)
	defer t.Stop()
	select {
	case <-l.done:
	case <-t.C:
	}
}
