// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// A reporter prints progress: plain lines, and on a terminal a moving one.
type reporter struct {
	mu    sync.Mutex
	w     io.Writer
	live  bool // a terminal
	moved bool // the moving line stands
	begin time.Time
	stamp bool
	raw   bool // the terminal does not return the carriage by itself
}

func newReporter(w io.Writer) *reporter {
	f, ok := w.(*os.File)
	return &reporter{
		w: w, begin: time.Now(), stamp: os.Getenv("CI") != "",
		live: ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" && os.Getenv("CI") == "",
	}
}

// Step prints a line that stays.
func (r *reporter) Step(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clearLocked()
	end := "\n"
	if r.raw {
		// What is being typed goes on below.
		fmt.Fprint(r.w, "\r\x1b[K")
		end = "\r\n"
	}
	line = strings.ReplaceAll(line, "\n", end)
	if r.stamp {
		fmt.Fprintf(r.w, "toebox: %6.1fs %s%s", time.Since(r.begin).Seconds(), line, end)
		return
	}
	fmt.Fprintf(r.w, "toebox: %s%s", line, end)
}

// setRaw says what state the terminal is in.
func (r *reporter) setRaw(raw bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.raw = raw && r.live
}

// Amount moves the line of a download.
func (r *reporter) Amount(what string, done, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.live || total <= 0 {
		return
	}
	fmt.Fprintf(r.w, "\r\x1b[Ktoebox: %s: %d%% of %.1f MB", what, done*100/total, float64(total)/1e6)
	r.moved = true
}

func (r *reporter) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clearLocked()
}

func (r *reporter) clearLocked() {
	if r.moved {
		fmt.Fprint(r.w, "\r\x1b[K")
		r.moved = false
	}
}
