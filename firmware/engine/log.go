// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"gvisor.dev/gvisor/pkg/log"
)

// RedirectStackLog sends what the protocol stack itself logs (malformed
// packets, most of it, at a limited rate) to l instead of standard error. The
// stack has one log for the process, so this is for a program's start, not for
// an engine.
func RedirectStackLog(l *slog.Logger) {
	log.SetTarget(stackLog{l})
}

type stackLog struct{ to *slog.Logger }

// Emit implements the stack's log.Emitter.
func (s stackLog) Emit(_ int, level log.Level, _ time.Time, format string, v ...any) {
	to := slog.LevelDebug
	switch level {
	case log.Warning:
		to = slog.LevelWarn
	case log.Info:
		to = slog.LevelInfo
	}
	if s.to.Enabled(context.Background(), to) {
		s.to.Log(context.Background(), to, "protocol stack: "+fmt.Sprintf(format, v...))
	}
}
