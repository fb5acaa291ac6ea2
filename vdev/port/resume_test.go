// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
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

// counted counts what is read.
type counted struct {
	io.ReaderAt
	n int64
}

func (c *counted) ReadAt(b []byte, at int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(b, at)
	c.n += int64(n)
	return n, err
}

// block is one of a type, with data that looks like a block's end and start at every
// place.
func block(kind uint32, size int, fill string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = append(b, bytes.Repeat([]byte(fill), size/len(fill)+1)[:size-12]...)
	return binary.LittleEndian.AppendUint32(b, uint32(size))
}

// TestResumeLargeCapture cuts a capture of 10 GiB at every byte of its last block and
// judges it by its end.
func TestResumeLargeCapture(t *testing.T) {
	const (
		hole = 10 << 30
		most = 1<<20 + 16 // bytes read
	)
	for name, fill := range map[string]string{
		"text": "the quick brown fox ", "zeros": "\x00\x00\x00\x00", "types": "\x06\x00\x00\x00",
		"blocks": "\x06\x00\x00\x00\x0c\x00\x00\x00\x0c\x00\x00\x00", // whole ones, but for the last
	} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "capture"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteString("\x0a\x0d\x0d\x0a"); err != nil {
				t.Fatal(err)
			}
			var end []byte
			for n := 0; len(end) < 3<<20; n++ {
				end = append(end, block(6, 64+4*(n*7919%32768), fill)...)
			}
			const lastSize = 92
			last := len(end)
			end = append(end, block(6, lastSize, fill)...)
			if _, err := f.WriteAt(end, hole); err != nil {
				t.Fatal(err)
			}
			for n := lastSize; n >= 0; n-- {
				size := int64(hole + last + n)
				if err := f.Truncate(size); err != nil {
					t.Fatal(err)
				}
				want := int64(hole + last)
				if n == lastSize {
					want = size
				}
				r := &counted{ReaderAt: f}
				if got, err := wholeBlocks(r, size); err != nil || got != want || r.n > most {
					t.Fatalf("cut at %d of the last block: %d, %v, want %d; %d bytes read", n, got-hole, err, want-hole, r.n)
				}
			}
			if _, err := f.WriteAt(end[last:last+5], int64(hole+last)); err != nil {
				t.Fatal(err)
			}
			if err := ResumeCapture(f); err != nil {
				t.Fatal(err)
			}
			if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != int64(hole+last) {
				t.Errorf("resumed at %d, %v", at-hole, err)
			}
		})
	}
}

// TestResumeOddCapture: where the end does not tell, the whole file does.
func TestResumeOddCapture(t *testing.T) {
	section := block(0x0a0d0d0a, 28, "x")
	small := block(6, 64, "data")
	many := bytes.Repeat(small, 2<<20/len(small))
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	huge := block(6, 2<<20, "data")
	for name, test := range map[string]struct {
		content []byte
		whole   int
	}{
		"just more than the window": {join(section, many[:(1<<20)-20+64-44]), len(section) + (1<<20)/64*64},
		"a block that is too large": {join(section, huge, huge[:100]), len(section) + len(huge)},
		"unknown blocks":            {join(section, bytes.Repeat(block(0xbad, 64, "data"), 40000), []byte("torn")), len(section) + 40000*64},
		"broken before the window":  {join(section, small, []byte("????"), many, []byte("torn")), len(section) + 64 + 4 + len(many)},
		"broken in the window":      {join(section, many, []byte("????"), many[:len(many)/4]), len(section) + len(many)},
	} {
		if got, err := wholeBlocks(bytes.NewReader(test.content), int64(len(test.content))); err != nil || got != int64(test.whole) {
			t.Errorf("%s: %d of %d, %v; want %d", name, got, len(test.content), err, test.whole)
		}
	}
	for _, other := range []string{"\x0a\x0d\x0d\x0b", "\x0b", string(make([]byte, 3<<20))} {
		if _, err := wholeBlocks(strings.NewReader(other), int64(len(other))); err == nil {
			t.Errorf("%.8q passes", other)
		}
	}
	if _, err := wholeBlocks(strings.NewReader("\x0a\x0d\x0d\x0a"), 5<<20); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("shrunk: %v", err)
	}
}
