// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Linux x86 boot protocol, Documentation/arch/x86/boot.rst: offsets into a bzImage.
const (
	offSetupSects    = 0x1f1 // u8, in sectors, without the first
	offHeaderMagic   = 0x202 // "HdrS"
	offVersion       = 0x206 // u16
	offPayloadOffset = 0x248 // u32, from the start of the protected-mode code; 2.08+
	offPayloadLength = 0x24c // u32
	headerEnd        = 0x250

	sector         = 512
	versionPayload = 0x208
	lengthWord     = 4 // bytes after the payload's stream

	zstdWindow = 128 << 20 // what zstd -22 --ultra, which packs images, looks back
)

// Xen's ELF note that gives the 32-bit physical entry point of a PVH guest.
const notePhys32Entry = 18

// Vmlinux returns the ELF kernel inside a bzImage.
func Vmlinux(image []byte) ([]byte, error) {
	payload, err := payload(image)
	if err != nil {
		return nil, fmt.Errorf("toolchain: bzImage: %w", err)
	}
	out, err := decompress(payload, maxKernel)
	if err != nil {
		return nil, fmt.Errorf("toolchain: bzImage: %w", err)
	}
	if !bytes.HasPrefix(out, []byte(elf.ELFMAG)) {
		return nil, errors.New("toolchain: bzImage: the payload is no ELF file")
	}
	return out, nil
}

// payload returns the compressed kernel of a bzImage.
func payload(image []byte) ([]byte, error) {
	if len(image) < headerEnd || string(image[offHeaderMagic:offHeaderMagic+4]) != "HdrS" {
		return nil, errors.New("no boot header")
	}
	if v := binary.LittleEndian.Uint16(image[offVersion:]); v < versionPayload {
		return nil, fmt.Errorf("boot protocol %#x is too old", v)
	}
	sectors := uint64(image[offSetupSects])
	if sectors == 0 {
		sectors = 4 // for historical reasons, says the protocol
	}
	start := (sectors+1)*sector + uint64(binary.LittleEndian.Uint32(image[offPayloadOffset:]))
	length := uint64(binary.LittleEndian.Uint32(image[offPayloadLength:]))
	if start+length > uint64(len(image)) || length == 0 {
		return nil, errors.New("payload lies outside the file")
	}
	return image[start : start+length], nil
}

// decompress unpacks one stream of a format Linux uses for images and modules,
// ignoring the length word that follows it in an image. The result is at most
// limit bytes.
func decompress(b []byte, limit int64) ([]byte, error) {
	var r io.Reader
	switch {
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		// Images are packed with long windows.
		d, err := zstd.NewReader(bytes.NewReader(zstdFrame(b)), zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		r = d
	case bytes.HasPrefix(b, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		// A stream ends in YZ (xz-file-format 2.1.2.4); the decoder refuses what follows.
		if n := len(b) - lengthWord; n > 2 && string(b[n-2:n]) == "YZ" && string(b[len(b)-2:]) != "YZ" {
			b = b[:n]
		}
		d, err := xz.ReaderConfig{SingleStream: true}.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		r = d
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		d, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		d.Multistream(false)
		r = d
	default:
		return nil, fmt.Errorf("unknown compression % x", b[:min(len(b), 6)])
	}
	out, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(out)) > limit {
		return nil, fmt.Errorf("unpacks to more than %d bytes", limit)
	}
	return out, nil
}

// zstdFrame returns the first frame of b (RFC 8878 §3.1.1): the decoder takes what
// follows a frame for the next one.
func zstdFrame(b []byte) []byte {
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return b
	}
	n := h.HeaderSize
	for n+3 <= len(b) {
		block := uint32(b[n]) | uint32(b[n+1])<<8 | uint32(b[n+2])<<16
		size := int(block >> 3)
		if block>>1&3 == 1 { // RLE: one byte stands for all
			size = 1
		}
		n += 3 + size
		if block&1 != 0 { // last
			if h.HasCheckSum {
				n += 4
			}
			break
		}
	}
	return b[:min(n, len(b))]
}

// EntryPVH says whether image is an x86-64 ELF kernel that can be entered directly.
func EntryPVH(image []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil || f.Machine != elf.EM_X86_64 {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			continue
		}
		if hasNote(notes, "Xen\x00", notePhys32Entry) {
			return true
		}
	}
	return false
}

// hasNote looks for a note by name (with its NUL) and type.
func hasNote(b []byte, name string, kind uint32) bool {
	for len(b) >= 12 {
		n := uint64(binary.LittleEndian.Uint32(b))
		d := uint64(binary.LittleEndian.Uint32(b[4:]))
		t := binary.LittleEndian.Uint32(b[8:])
		b = b[12:]
		whole := (n+3)&^3 + (d+3)&^3
		if n > uint64(len(b)) {
			return false
		}
		if t == kind && string(b[:n]) == name {
			return true
		}
		if whole > uint64(len(b)) {
			return false
		}
		b = b[whole:]
	}
	return false
}
