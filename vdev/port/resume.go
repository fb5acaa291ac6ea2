// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bufio"
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

// ResumeCapture prepares a file for one more section of a capture: writing goes
// on behind the last whole block. What a process that was killed has left of one
// is cut off. What has no place to seek to, as a pipe, stays as it is; a file
// that does not start as captures do is refused.
func ResumeCapture(f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if errors.Is(err, syscall.ESPIPE) {
		return nil
	}
	var end int64
	if err == nil {
		end, err = wholeBlocks(io.NewSectionReader(f, 0, size))
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

// wholeBlocks returns how many bytes the whole blocks at the start of r have.
func wholeBlocks(r io.Reader) (int64, error) {
	b := bufio.NewReaderSize(r, 1<<20)
	var head [blockHead]byte
	var tail [blockTail]byte
	for end := int64(0); ; {
		if _, err := io.ReadFull(b, head[:]); err != nil {
			return end, cut(err)
		}
		if end == 0 && binary.LittleEndian.Uint32(head[:]) != blockSection {
			return 0, errors.New("not a capture of ours")
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
