// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
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
	if r.stamp {
		fmt.Fprintf(r.w, "toebox: %6.1fs %s\n", time.Since(r.begin).Seconds(), line)
		return
	}
	fmt.Fprintf(r.w, "toebox: %s\n", line)
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
