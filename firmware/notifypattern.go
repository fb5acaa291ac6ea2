// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/vdev/abi"

// Modes and scopes of NOTIFY_PATTERN.
const (
	patternOff   = 0
	patternStart = 1 // the stream begins with it
	patternEnd   = 2 // it is somewhere in the stream

	scopeAll = 1
)

// Bounds of the byte ceiling of NOTIFY_PATTERN; 0 means the first.
const (
	patternBytes    = 64 << 10
	maxPatternBytes = 1 << 20
)

// pattern is a value of NOTIFY_PATTERN that is on, ready to be looked for. It
// is shared by connections and never changed.
type pattern struct {
	value []byte // as the host set it
	text  []byte // the pattern in value
	start bool   // the stream must begin with it
	all   bool   // a match releases all notices
	bytes uint64 // ceiling
	time  uint64 // ceiling, 0: none
	// fail[k] is how long a start of text also ends text[:k]: where matching
	// goes on when byte k does not fit.
	fail [abi.MaxPattern + 1]uint8
}

// newPattern checks a value; a mode of 0 is nil.
func newPattern(value []byte) (*pattern, abi.Status) {
	v, s := abi.ParseNotifyPattern(value)
	switch {
	case s != abi.StatusOK:
		return nil, s
	case v.Bytes > maxPatternBytes, v.Time > maxTime:
		return nil, abi.StatusBadValue
	case v.Mode == patternOff:
		return nil, abi.StatusOK
	}
	p := &pattern{
		value: append([]byte(nil), value...), start: v.Mode == patternStart, all: v.Scope == scopeAll,
		bytes: uint64(v.Bytes), time: v.Time,
	}
	if p.bytes == 0 {
		p.bytes = patternBytes
	}
	p.text = p.value[abi.NotifyPatternSize:]
	for i, k := 1, 0; i < len(p.text); i++ {
		for k > 0 && p.text[i] != p.text[k] {
			k = int(p.fail[k])
		}
		if p.text[i] == p.text[k] {
			k++
		}
		p.fail[i+1] = uint8(k)
	}
	return p, abi.StatusOK
}

// scan is how far the stream of one connection was looked at.
type scan struct {
	seen   uint64 // bytes
	state  uint8  // bytes of the pattern that the last bytes are
	failed bool   // the start is another
	found  bool
}

// feed looks at the next bytes of the stream, each once.
func (s *scan) feed(p *pattern, b []byte) {
	for i, c := range b {
		if s.found || s.failed {
			break
		}
		if p.start && c != p.text[s.state] {
			s.failed = true
			break
		}
		for s.state > 0 && c != p.text[s.state] {
			s.state = p.fail[s.state]
		}
		if c == p.text[s.state] {
			s.state++
		}
		if int(s.state) == len(p.text) {
			s.found = true
			s.seen += uint64(i) + 1
			return
		}
	}
	s.seen += uint64(len(b))
}
