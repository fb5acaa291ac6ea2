// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"toebox/images/proc"
	"toebox/images/toolchain"
)

// Accelerators, as QEMU and TOEBOX_ACCEL name them.
const (
	AccelAuto = "auto"
	AccelKVM  = "kvm"
	AccelTCG  = "tcg"
)

const (
	// trialPatience bounds the trial. A working KVM needs a tenth of it; one that
	// does not work may spin in the kernel for ever.
	trialPatience = time.Second
	trialPort     = 0xf4 // isa-debug-exit
	trialValue    = 0x21
	trialStatus   = trialValue<<1 | 1 // what QEMU makes of it (hw/misc/debugexit.c)
	trialBase     = 0x100000          // load address
)

// trialCode runs in 32-bit protected mode, as PVH enters a kernel
// (include/xen/interface/hvm/start_info.h), goes on to long mode with one huge page
// mapped, and there does what emulated or nested KVMs stumble over: an MSR, CPUID, a
// string move and SSE arithmetic. It ends QEMU through the debug port.
//
// Offsets are relative to trialBase; the tables at 0x1000 are filled by the code.
func trialCode() []byte {
	return []byte{
		// 00: page tables: PML4 at +0x1000 -> PDPT at +0x2000 -> 1 GiB at 0 as 2 MiB pages
		0xbf, 0x00, 0x10, 0x10, 0x00, // mov edi, 0x101000
		0xc7, 0x07, 0x03, 0x20, 0x10, 0x00, // mov dword [edi], 0x102003
		0xbf, 0x00, 0x20, 0x10, 0x00, // mov edi, 0x102000
		0xc7, 0x07, 0x03, 0x30, 0x10, 0x00, // mov dword [edi], 0x103003
		0xbf, 0x00, 0x30, 0x10, 0x00, // mov edi, 0x103000
		0xc7, 0x07, 0x83, 0x00, 0x00, 0x00, // mov dword [edi], 0x83 ; present, writable, 2 MiB
		// 21: long mode
		0xb8, 0x00, 0x10, 0x10, 0x00, // mov eax, 0x101000
		0x0f, 0x22, 0xd8, // mov cr3, eax
		0x0f, 0x20, 0xe0, // mov eax, cr4
		0x0d, 0x20, 0x06, 0x00, 0x00, // or eax, 0x620 ; PAE, OSFXSR, OSXMMEXCPT
		0x0f, 0x22, 0xe0, // mov cr4, eax
		0xb9, 0x80, 0x00, 0x00, 0xc0, // mov ecx, 0xc0000080 ; EFER
		0x0f, 0x32, // rdmsr
		0x0d, 0x00, 0x01, 0x00, 0x00, // or eax, 0x100 ; LME
		0x0f, 0x30, // wrmsr
		0x0f, 0x20, 0xc0, // mov eax, cr0
		0x25, 0xfb, 0xff, 0xff, 0xff, // and eax, ~4 ; EM off
		0x0d, 0x02, 0x00, 0x00, 0x80, // or eax, 0x80000002 ; PG, MP
		0x0f, 0x22, 0xc0, // mov cr0, eax
		0x0f, 0x01, 0x15, 0x9e, 0x00, 0x10, 0x00, // lgdt [0x10009e]
		0xea, 0x60, 0x00, 0x10, 0x00, 0x08, 0x00, // jmp 8:0x100060
		// 60: 64 bits
		0x31, 0xc0, // xor eax, eax
		0x0f, 0xa2, // cpuid
		0xbe, 0x00, 0x00, 0x10, 0x00, // mov esi, 0x100000
		0xbf, 0x00, 0x40, 0x10, 0x00, // mov edi, 0x104000
		0xb9, 0x00, 0x01, 0x00, 0x00, // mov ecx, 0x100
		0xf3, 0xa4, // rep movsb
		0x0f, 0x28, 0x04, 0x25, 0x00, 0x40, 0x10, 0x00, // movaps xmm0, [0x104000]
		0x66, 0x0f, 0xef, 0xc0, // pxor xmm0, xmm0
		0xb0, trialValue, // mov al, value
		0xe6, trialPort, // out port, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp -3
	}
}

// Offsets of data behind the code.
const (
	trialGDT   = 0x88 // 8-aligned, null and one 64-bit code segment
	trialGDTR  = 0x9e
	trialImage = 0xb0
)

// trialKernel returns an ELF kernel with a PVH entry that runs trialCode.
func trialKernel() []byte {
	const (
		ehsize, phsize = 64, 56
		notes          = ehsize + 2*phsize
		text           = 0x1000
	)
	le := binary.LittleEndian
	body := make([]byte, trialImage)
	copy(body, trialCode())
	le.PutUint64(body[trialGDT+8:], 0x00209a0000000000) // 64-bit code, present, ring 0
	le.PutUint16(body[trialGDTR:], 15)
	le.PutUint32(body[trialGDTR+2:], trialBase+trialGDT)

	var b bytes.Buffer
	put := func(v ...any) {
		for _, x := range v {
			binary.Write(&b, le, x) //nolint:errcheck // a buffer takes all
		}
	}
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	put(uint16(2), uint16(62), uint32(1), uint64(trialBase), uint64(ehsize), uint64(0), uint32(0),
		uint16(ehsize), uint16(phsize), uint16(2), uint16(64), uint16(0), uint16(0))
	put(uint32(1), uint32(7), uint64(text), uint64(trialBase), uint64(trialBase), // PT_LOAD, rwx
		uint64(len(body)), uint64(0x5000), uint64(0x1000))
	put(uint32(4), uint32(4), uint64(notes), uint64(0), uint64(0), // PT_NOTE
		uint64(20), uint64(20), uint64(4))
	put(uint32(4), uint32(4), uint32(18)) // note: 18 is PHYS32_ENTRY
	b.WriteString("Xen\x00")
	put(uint32(trialBase))
	b.Write(make([]byte, text-b.Len()))
	b.Write(body)
	return b.Bytes()
}

// An Accel is the outcome of choosing an accelerator.
type Accel struct {
	Name string // AccelKVM or AccelTCG
	Why  string // why not KVM, in words; "" for KVM
}

// PickAccel turns a wish into an accelerator that works: KVM only if a virtual CPU
// really ran. The outcome is kept in cacheDir until the machine boots again.
func PickAccel(ctx context.Context, q *toolchain.QEMU, wish, cacheDir string) (Accel, error) {
	return pickAccel(ctx, q, wish, cacheDir, trialPatience)
}

func pickAccel(ctx context.Context, q *toolchain.QEMU, wish, cacheDir string, patience time.Duration) (Accel, error) {
	switch wish {
	case AccelTCG:
		return Accel{Name: AccelTCG, Why: "asked for"}, nil
	case AccelKVM:
		if err := tryAccel(ctx, q, AccelKVM, time.After(patience)); err != nil {
			return Accel{}, fmt.Errorf("vm: KVM was asked for but does not work: %w", err)
		}
		return Accel{Name: AccelKVM}, nil
	case AccelAuto, "":
	default:
		return Accel{}, fmt.Errorf("vm: accelerator %q: want auto, kvm or tcg", wish)
	}
	// Without the device there is nothing to try or to remember.
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return Accel{Name: AccelTCG, Why: kvmMissing(err)}, nil
	}
	f.Close() //nolint:errcheck // only asked whether it opens
	memo := accelMemo{path: filepath.Join(cacheDir, "accel.json"), key: bootID() + " " + strings.Join(q.Argv, " ") + " " + q.Version}
	if a, ok := memo.load(); ok {
		return a, nil
	}
	a := Accel{Name: AccelKVM}
	if err := tryAccel(ctx, q, AccelKVM, time.After(patience)); err != nil {
		if ctx.Err() != nil {
			return Accel{}, ctx.Err()
		}
		a = Accel{Name: AccelTCG, Why: "/dev/kvm is there but does not work: " + err.Error()}
	}
	memo.store(a)
	return a, nil
}

// ForgetKVM notes that KVM failed in earnest, so that the next run does not try it.
func ForgetKVM(q *toolchain.QEMU, cacheDir, why string) {
	memo := accelMemo{path: filepath.Join(cacheDir, "accel.json"), key: bootID() + " " + strings.Join(q.Argv, " ") + " " + q.Version}
	memo.store(Accel{Name: AccelTCG, Why: why})
}

func kvmMissing(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "no /dev/kvm"
	case errors.Is(err, os.ErrPermission):
		return "no permission for /dev/kvm (join the group kvm)"
	}
	return err.Error()
}

// An accelMemo is the remembered outcome of a trial.
type accelMemo struct {
	path, key string
}

type accelRecord struct {
	Key   string `json:"key"`
	Accel Accel  `json:"accel"`
}

func (m accelMemo) load() (Accel, bool) {
	b, err := os.ReadFile(m.path)
	if err != nil {
		return Accel{}, false
	}
	var r accelRecord
	if json.Unmarshal(b, &r) != nil || r.Key != m.key || r.Accel.Name != AccelKVM && r.Accel.Name != AccelTCG {
		return Accel{}, false
	}
	return r.Accel, true
}

// store is best effort: without it the next run tries again.
func (m accelMemo) store(a Accel) {
	b, err := json.Marshal(accelRecord{Key: m.key, Accel: a})
	if err != nil {
		return
	}
	tmp := fmt.Sprintf("%s.%d", m.path, os.Getpid())
	if os.WriteFile(tmp, b, 0o644) == nil {
		os.Rename(tmp, m.path) //nolint:errcheck // best effort
	}
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}

// TryKVM runs a virtual CPU under KVM through firmware, mode switches and some
// instructions of long mode, and says what went wrong.
func TryKVM(ctx context.Context, q *toolchain.QEMU) error {
	return tryAccel(ctx, q, AccelKVM, time.After(trialPatience))
}

// tryAccel gives up once overdue can be received from.
func tryAccel(ctx context.Context, q *toolchain.QEMU, accel string, overdue <-chan time.Time) error {
	began := time.Now()
	dir, err := os.MkdirTemp("", "toebox-trial-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // only wasted space if it stays
	kernel := filepath.Join(dir, "trial")
	if err := os.WriteFile(kernel, trialKernel(), 0o600); err != nil {
		return err
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-accel", accel, "-cpu", "max", "-m", "64",
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=1", trialPort), "-kernel", kernel,
	}
	if q.QBoot {
		args = append(args, "-bios", "qboot.rom")
	}
	cmd := q.Command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := proc.Start(cmd)
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.Stop(0)
		return ctx.Err()
	case <-overdue:
		p.Stop(0)
		if text := internalError(out.String()); text != "" {
			return errors.New(text)
		}
		return fmt.Errorf("a virtual CPU got nowhere in %v", time.Since(began).Round(time.Second))
	}
	var exit *exec.ExitError
	if errors.As(p.Err(), &exit) && exit.ExitCode() == trialStatus {
		return nil
	}
	if text := internalError(out.String()); text != "" {
		return errors.New(text)
	}
	last := strings.TrimSpace(out.String())
	last = last[strings.LastIndexByte(last, '\n')+1:]
	return fmt.Errorf("QEMU ended (%v) %s", p.Err(), last)
}

// internalError finds QEMU's report that KVM gave up on the guest.
func internalError(log string) string {
	i := strings.Index(log, "KVM internal error")
	if i < 0 {
		return ""
	}
	lines := strings.SplitN(log[i:], "\n", 3)
	if len(lines) > 1 && !strings.Contains(lines[1], "=") {
		return lines[0] + " " + strings.TrimSpace(lines[1])
	}
	return strings.TrimSpace(lines[0])
}
