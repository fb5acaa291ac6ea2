// SPDX-License-Identifier: Apache-2.0

package shell

import (
	"os"
	"path/filepath"
	"strings"
)

// complete extends the word before the cursor as far as it is certain: the first one
// of a line by programs, others by files.
func (s *shell) complete(line string, pos int, key rune) (string, int, bool) {
	if key != '\t' {
		return "", 0, false
	}
	begin := strings.LastIndexAny(line[:pos], " \t|;&<>(") + 1
	word := line[begin:pos]
	first := strings.TrimRight(line[:begin], " \t")
	command := first == "" || strings.ContainsAny(first[len(first)-1:], "|;&(")
	var names []string
	if command && !strings.Contains(word, "/") {
		for _, dir := range filepath.SplitList(s.runner.Env.Get("PATH").String()) {
			names = append(names, matches(dir, word)...)
		}
	} else {
		dir, base := filepath.Split(word)
		at := dir
		if !filepath.IsAbs(at) {
			at = filepath.Join(s.runner.Dir, at)
		}
		for _, n := range matches(at, base) {
			names = append(names, dir+n)
		}
	}
	more := common(names)
	if len(more) <= len(word) {
		return "", 0, false
	}
	if len(names) == 1 && !strings.HasSuffix(more, "/") {
		more += " "
	}
	return line[:begin] + more + line[pos:], begin + len(more), true
}

// matches lists what in dir starts with prefix, directories with a slash.
func matches(dir, prefix string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, prefix) || prefix == "" && name[0] == '.' {
			continue
		}
		if st, err := os.Stat(filepath.Join(dir, name)); err == nil && st.IsDir() {
			name += "/"
		}
		names = append(names, name)
	}
	return names
}

// common returns the longest prefix of all names.
func common(names []string) string {
	if len(names) == 0 {
		return ""
	}
	p := names[0]
	for _, n := range names[1:] {
		for !strings.HasPrefix(n, p) {
			p = p[:len(p)-1]
		}
	}
	return p
}
