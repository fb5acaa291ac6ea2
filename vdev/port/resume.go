// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

const (
	blockHead = 8 // type and length
	blockTail = 4 // length again
)

// Our tunables.
const (
	// maxBlock is more than the largest block that Capture writes.
	maxBlock = 256 << 10
	// resumeWindow is how much of a capture's end is looked at. Boundaries are looked
	// for in the first maxBlock of it, where there is one; those count from which
	// blocks follow each other to within maxBlock of the end.
	resumeWindow = 4 * maxBlock
)

// ResumeCapture prepares a file for one more section of a capture: writing goes
// on behind the last whole block. What a process that was killed has left of one
// is cut off. What has no place to seek to, as a pipe, stays as it is; a file
// that does not start as captures do is refused.
//
// Of a large file only start and end are read, so that a capture may grow while
// devices come and go. Frames could be made to look like blocks: their sender then
// has part of its own frame stay behind in the file.
func ResumeCapture(f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if errors.Is(err, syscall.ESPIPE) {
		return nil
	}
	var end int64
	if err == nil {
		end, err = wholeBlocks(f, size)
	}
	if err == nil && end < size {
		if err = f.Truncate(end); err == nil {
			_, err = f.Seek(end, io.SeekStart)
		}
	}
	if err != nil {
		return fmt.Errorf("port: resume capture: %w", err)
	}
	return nil
}

// wholeBlocks returns where the last whole block of a capture ends.
func wholeBlocks(r io.ReaderAt, size int64) (int64, error) {
	start := make([]byte, min(size, 4))
	if err := readAll(r, start, 0); err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(binary.LittleEndian.AppendUint32(nil, blockSection), start) {
		return 0, errors.New("not a capture of ours")
	}
	if size > resumeWindow {
		at := (size - resumeWindow) &^ 3 // blocks start at multiples of 4
		tail := make([]byte, size-at)
		if err := readAll(r, tail, at); err != nil {
			return 0, err
		}
		if end, ok := judgeTail(tail); ok {
			return at + int64(end), nil
		}
	}
	return walkBlocks(io.NewSectionReader(r, 0, size))
}

// readAll fills b; a file that has shrunk is an error.
func readAll(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// judgeTail returns where the last whole block ends in the end of a capture that
// starts anywhere.
func judgeTail(b []byte) (end int, ok bool) {
	seen := make([]bool, len(b)/4+1) // places that lead nowhere
	for from := 0; from < maxBlock; from += 4 {
		at := from
		for !seen[at/4] {
			seen[at/4] = true
			n := blockAt(b[at:])
			if n == 0 {
				break
			}
			at += n
		}
		if at > from && at >= len(b)-maxBlock {
			return at, true
		}
	}
	return 0, false
}

// blockAt returns the length of the block at the start of b; 0: there is no whole one
// of ours.
func blockAt(b []byte) int {
	if len(b) < blockHead+blockTail {
		return 0
	}
	switch binary.LittleEndian.Uint32(b) {
	case blockSection, blockInterface, blockStats, blockPacket:
	default:
		return 0
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if n < blockHead+blockTail || n%4 != 0 || n > maxBlock || int(n) > len(b) || binary.LittleEndian.Uint32(b[n-blockTail:]) != n {
		return 0
	}
	return int(n)
}

// walkBlocks returns how many bytes the whole blocks at the start of r have.
func walkBlocks(r io.Reader) (int64, error) {
	b := bufio.NewReaderSize(r, 1<<20)
	var head [blockHead]byte
	var tail [blockTail]byte
	for end := int64(0); ; {
		if _, err := io.ReadFull(b, head[:]); err != nil {
			return end, cut(err)
		}
		n := binary.LittleEndian.Uint32(head[4:])
		if n < blockHead+blockTail || n%4 != 0 {
			return end, nil
		}
		if _, err := io.CopyN(io.Discard, b, int64(n)-blockHead-blockTail); err != nil {
			return end, cut(err)
		}
		if _, err := io.ReadFull(b, tail[:]); err != nil {
			return end, cut(err)
		}
		if binary.LittleEndian.Uint32(tail[:]) != n {
			return end, nil
		}
		end += int64(n)
	}
}

// cut is nil for the error of a file that ends.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil
	}
	return err
}
