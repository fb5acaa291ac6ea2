// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestResumeCapture cuts a capture at every byte and resumes it: what is whole
// stays, and the next write follows it.
func TestResumeCapture(t *testing.T) {
	section := "\x0a\x0d\x0d\x0a" + "\x1c\x00\x00\x00" + // type, length
		"\x4d\x3c\x2b\x1a" + "\x01\x00\x00\x00" + "\xff\xff\xff\xff\xff\xff\xff\xff" + // magic, version, length unknown
		"\x1c\x00\x00\x00"
	packet := "\x06\x00\x00\x00" + "\x10\x00\x00\x00" + "\x10\x00\x00\x00" + "\x10\x00\x00\x00"
	whole := section + packet + packet + section + packet
	path := filepath.Join(t.TempDir(), "capture")
	resume := func(content string) (string, error) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := ResumeCapture(f); err != nil {
			return "", err
		}
		if _, err := f.WriteString("|next"); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		return string(b), err
	}
	ends := []int{0, 28, 44, 60, 88, 104} // of whole blocks
	for n := range len(whole) + 1 {
		want := 0
		for _, end := range ends {
			if end <= n {
				want = end
			}
		}
		if got, err := resume(whole[:n]); err != nil || got != whole[:want]+"|next" {
			t.Errorf("cut at %d: %d bytes stay, %v; want %d", n, strings.Index(got, "|"), err, want)
		}
	}
	for name, block := range map[string]string{
		"length 0":            "\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"length 13":           "\x06\x00\x00\x00\x0d\x00\x00\x00\x00\x0d\x00\x00\x00",
		"lengths that differ": "\x06\x00\x00\x00\x0c\x00\x00\x00\x10\x00\x00\x00",
		"length 4 GiB":        "\x06\x00\x00\x00\xfc\xff\xff\xff\xfc\xff\xff\xff",
	} {
		if got, err := resume(section + block); err != nil || got != section+"|next" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := resume("something else of the user's"); err == nil {
		t.Error("any file passes")
	} else if b, err := os.ReadFile(path); !bytes.HasPrefix(b, []byte("something else")) {
		t.Errorf("it was touched: %q, %v", b, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := ResumeCapture(w); err != nil {
		t.Errorf("a pipe: %v", err)
	}
}
