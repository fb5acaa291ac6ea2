// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// tinyELF returns an ELF64 file of one kind of machine with one PT_NOTE segment
// that holds notes.
func tinyELF(machine uint16, notes []byte) []byte {
	b := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	le := binary.LittleEndian
	b = le.AppendUint16(b, 2)       // executable
	b = le.AppendUint16(b, machine) // 62 is x86-64
	b = le.AppendUint32(b, 1)
	for _, v := range []uint64{0, 64, 0} { // entry, program headers, section headers
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 4) // PT_NOTE
	b = le.AppendUint32(b, 4)
	n := uint64(len(notes))
	for _, v := range []uint64{120, 0, 0, n, n, 4} {
		b = le.AppendUint64(b, v)
	}
	return append(b, notes...)
}

// A note with name "Xen", type 18 and an 8-byte entry.
const pvhNote = "\x04\x00\x00\x00\x08\x00\x00\x00\x12\x00\x00\x00Xen\x00\x00\x00\x00\x01\x00\x00\x00\x00"

// bzImage wraps a payload as boot.rst says, with its length word behind.
func bzImage(payload []byte) []byte {
	b := make([]byte, 3*512)
	b[0x1f1] = 1 // one setup sector behind the first
	copy(b[0x202:], "HdrS")
	b[0x206], b[0x207] = 0x0f, 0x02                                  // protocol 2.15
	binary.LittleEndian.PutUint32(b[0x248:], 512)                    // payload_offset
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)+4)) // payload_length
	b = append(b, payload...)
	return append(b, 0xde, 0xad, 0xbe, 0xef)
}

func pack(t *testing.T, kind string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w interface {
		Write([]byte) (int, error)
		Close() error
	}
	var err error
	switch kind {
	case "zstd":
		w, err = zstd.NewWriter(&out)
	case "xz":
		w, err = xz.NewWriter(&out)
	case "gzip":
		w = gzip.NewWriter(&out)
	default:
		return b
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestVmlinux(t *testing.T) {
	// Long enough for several blocks, runs included.
	elf := append(tinyELF(62, []byte(pvhNote)), bytes.Repeat([]byte("kernel text "), 1<<16)...)
	elf = append(elf, make([]byte, 1<<20)...)
	for _, kind := range []string{"zstd", "xz", "gzip"} {
		got, err := Vmlinux(bzImage(pack(t, kind, elf)))
		if err != nil {
			t.Errorf("%s: %v", kind, err)
		} else if !bytes.Equal(got, elf) {
			t.Errorf("%s: %d bytes came out, want %d", kind, len(got), len(elf))
		}
	}
}

func TestVmlinuxHostile(t *testing.T) {
	good := bzImage(pack(t, "zstd", tinyELF(62, nil)))
	change := func(f func(b []byte)) []byte {
		b := slices.Clone(good)
		f(b)
		return b
	}
	for name, b := range map[string][]byte{
		"empty":            nil,
		"short":            good[:0x24f],
		"no magic":         change(func(b []byte) { b[0x202] = 'X' }),
		"old protocol":     change(func(b []byte) { b[0x206], b[0x207] = 7, 2 }),
		"payload outside":  change(func(b []byte) { b[0x24b] = 0xff }),
		"payload too long": change(func(b []byte) { b[0x24f] = 0xff }),
		"no payload":       change(func(b []byte) { copy(b[0x24c:], []byte{0, 0, 0, 0}) }),
		"unknown packer":   bzImage([]byte("\x02\x21\x4c\x18xxxx")),
		"truncated zstd":   bzImage(pack(t, "zstd", tinyELF(62, nil))[:20]),
		"truncated xz":     bzImage(pack(t, "xz", tinyELF(62, nil))[:20]),
		"not an ELF":       bzImage(pack(t, "gzip", []byte("hello"))),
	} {
		if _, err := Vmlinux(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestDecompressIsBounded(t *testing.T) {
	for _, kind := range []string{"zstd", "xz", "gzip"} {
		if _, err := decompress(pack(t, kind, make([]byte, 1<<20)), 1<<16); err == nil {
			t.Errorf("%s: a bomb passes", kind)
		}
	}
}

func TestEntryPVH(t *testing.T) {
	other := "\x04\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00GNU\x00hi\x00\x00"
	for name, test := range map[string]struct {
		b    []byte
		want bool
	}{
		"entry":           {tinyELF(62, []byte(pvhNote)), true},
		"second note":     {tinyELF(62, []byte(other+pvhNote)), true},
		"other notes":     {tinyELF(62, []byte(other)), false},
		"another machine": {tinyELF(183, []byte(pvhNote)), false},
		"huge name":       {tinyELF(62, []byte("\xff\xff\xff\xff\x08\x00\x00\x00\x12\x00\x00\x00Xen\x00")), false},
		"huge contents":   {tinyELF(62, []byte("\x04\x00\x00\x00\xff\xff\xff\xff\x01\x00\x00\x00Xen\x00"+pvhNote)), false},
		"no ELF":          {[]byte("hello"), false},
	} {
		if got := EntryPVH(test.b); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzVmlinux(f *testing.F) {
	f.Add(bzImage([]byte("\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := payload(b); err == nil {
			decompress(p, 1<<20)
		}
		EntryPVH(b)
	})
}

// moduleELF is an ELF64 relocatable with a .modinfo section.
func moduleELF(info string) []byte {
	const names = "\x00.modinfo\x00.shstrtab\x00"
	le := binary.LittleEndian
	b := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	b = le.AppendUint16(b, 1) // relocatable
	b = le.AppendUint16(b, 62)
	b = le.AppendUint32(b, 1)
	at := uint64(64 + len(info) + len(names))
	for _, v := range []uint64{0, 0, at} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 0, 0, 64, 3, 2} {
		b = le.AppendUint16(b, v)
	}
	b = append(b, info+names...)
	section := func(name, kind uint32, offset, size int) {
		b = le.AppendUint32(b, name)
		b = le.AppendUint32(b, kind)
		for _, v := range []int{0, 0, offset, size} {
			b = le.AppendUint64(b, uint64(v))
		}
		b = append(b, make([]byte, 24)...)
	}
	section(0, 0, 0, 0)
	section(1, 1, 64, len(info))
	section(10, 3, 64+len(info), len(names))
	return b
}

func TestModules(t *testing.T) {
	tree := t.TempDir()
	if err := os.Mkdir(filepath.Join(tree, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"kernel/vfio-pci.ko.xz":   pack(t, "xz", moduleELF("license=GPL\x00depends=vfio-pci-core,vfio\x00")),
		"kernel/vfio-pci-core.ko": moduleELF("depends=irqbypass,vfio\x00"),
		"kernel/vfio.ko.zst":      pack(t, "zstd", moduleELF("depends=built_in\x00")),
		"kernel/irqbypass.ko.gz":  pack(t, "gzip", moduleELF("depends=\x00")),
		"kernel/circle.ko":        moduleELF("depends=round\x00"),
		"kernel/round.ko":         moduleELF("depends=circle\x00"),
		"kernel/needs-more.ko":    moduleELF("depends=absent\x00"),
		"kernel/broken.ko.xz":     []byte("\xfd7zXZ\x00broken"),
		"kernel/text.ko":          []byte("hello"),
		"kernel/no-modinfo.ko":    tinyELF(62, nil),
		"modules.builtin":         []byte("kernel/built-in.ko\n"),
	} {
		if err := os.WriteFile(filepath.Join(tree, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k := &Kernel{Tree: tree}
	got, err := k.Modules("vfio-pci", "built-in", "vfio")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range got {
		names = append(names, m.Name)
		if !bytes.HasPrefix(m.Data, []byte("\x7fELF")) {
			t.Errorf("%s is still packed", m.Name)
		}
	}
	if want := []string{"irqbypass", "vfio", "vfio_pci_core", "vfio_pci"}; !slices.Equal(names, want) {
		t.Errorf("order = %v, want %v", names, want)
	}
	if got, err := k.Modules("circle"); err != nil || len(got) != 2 {
		t.Errorf("circle: %d modules, %v", len(got), err)
	}
	for _, name := range []string{"needs-more", "broken", "text", "no-modinfo", "nothing"} {
		if _, err := k.Modules(name); err == nil || !strings.Contains(err.Error(), "toolchain: modules") {
			t.Errorf("%s: err = %v", name, err)
		}
	}
	if _, err := (&Kernel{Image: "x"}).Modules("vfio"); err == nil || !strings.Contains(err.Error(), "TOEBOX_MODULES") {
		t.Errorf("no tree: %v", err)
	}
}
