// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"io"
	"sync"
)

const maxLine = 512

// A lastLine passes output on and remembers its last line, for error messages.
type lastLine struct {
	to   io.Writer
	mu   sync.Mutex
	tail []byte
}

func (l *lastLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.tail = append(l.tail, p...)
	if n := len(l.tail); n > maxLine {
		l.tail = append(l.tail[:0], l.tail[n-maxLine:]...)
	}
	l.mu.Unlock()
	return l.to.Write(p)
}

func (l *lastLine) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := bytes.TrimSpace(l.tail)
	return string(t[bytes.LastIndexByte(t, '\n')+1:])
}
