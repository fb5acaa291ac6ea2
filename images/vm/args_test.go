// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"math"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"toebox/images/toolchain"
)

func sample() Config {
	return Config{
		QEMU:   &toolchain.QEMU{Argv: []string{"/q/ld.so", "/q/qemu"}, Env: []string{"QEMU_MODULE_DIR=/q/with space"}, QBoot: true},
		Kernel: &toolchain.Kernel{Image: "/k/vmlinux"}, Initramfs: "/i.cpio", Accel: AccelTCG, TSC: 2596000,
		CPUs: 2, MemoryMiB: 1024, HugePages: 128, Devices: []string{"/s,x/device", "/s,x/1/device"}, SocketDir: "/s,x", GDB: true,
		Append: []string{"more=1"}, Args: []string{"-device", "edu"},
	}
}

func TestQEMUArgs(t *testing.T) {
	c := sample()
	want := `-name toebox -nodefaults -no-user-config -display none
-machine q35,kernel-irqchip=split,memory-backend=ram
-accel tcg -cpu max -smp 2 -m 1024M
-object memory-backend-memfd,id=ram,size=1024M,share=on
-kernel /k/vmlinux -initrd /i.cpio
-append
console=ttyS0 quiet panic=-1 oops=panic mitigations=off cryptomgr.notests tsc=reliable no_timer_check 8250.nr_uarts=1 i8042.noaux i8042.nokbd initcall_blacklist=jent_mod_init,load_system_certificate_list,init_encrypted,crypto_kdf108_init nowatchdog init_on_alloc=0 intel_iommu=on hugepages=128 tsc_early_khz=2596000 more=1
-no-reboot -bios qboot.rom
-device intel-iommu,caching-mode=on,intremap=on
-chardev stdio,id=console,signal=off -serial chardev:console
-device virtio-serial-pci,addr=3.0 -chardev socket,id=control,path=/s,,x/control,server=on,wait=off
-device virtserialport,chardev=control,name=toebox.control
-qmp unix:/s,,x/qmp,server=on,wait=off
-device {"driver":"vfio-user-pci","addr":"5.0","socket":{"type":"unix","path":"/s,x/device"}}
-device {"driver":"vfio-user-pci","addr":"6.0","socket":{"type":"unix","path":"/s,x/1/device"}}
-s -device edu`
	got := strings.Join(c.QEMUArgs(), " ")
	if got != strings.ReplaceAll(want, "\n", " ") {
		t.Errorf("arguments:\n%s\nwant:\n%s", got, want)
	}
}

// The measured rate must hold over a longer time than it was measured in.
func TestHostTSC(t *testing.T) {
	if counter() == 0 {
		t.Skip("no time stamp counter: run on amd64")
	}
	begin, first, _ := readTSC()
	khz := HostTSC()
	<-time.After(200 * time.Millisecond)
	end, last, _ := readTSC()
	want := float64(last-first) * 1e6 / float64(end.Sub(begin))
	if khz == 0 || math.Abs(float64(khz)-want) > want/100 {
		t.Errorf("%d kHz, over %v %.0f", khz, end.Sub(begin), want)
	}
}

// TestVagueTSC: of readings that are all vague the most precise counts.
func TestVagueTSC(t *testing.T) {
	const vague = 5 * time.Millisecond
	for _, c := range []struct {
		name  string
		gaps  []time.Duration // of the readings, two a try
		waits int
		want  int
	}{
		{"quiet", []time.Duration{1000, 1000}, 1, 1001},
		{"quiet in the end", []time.Duration{vague, 1000, 1000, vague, 1000, 1000}, 3, 1003},
		{"never quiet", []time.Duration{vague, vague, vague, vague, vague, vague, vague, vague / 8, 2 * vague, vague, 4 * vague, vague}, tscTries, 1004},
		{"no counter", []time.Duration{1000, 1000}, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			at, count, waits := time.Unix(0, 0), uint64(1), 0
			khz := measureTSC(func() (time.Time, uint64, time.Duration) {
				gap := c.gaps[0]
				c.gaps = c.gaps[1:]
				return at, count, gap
			}, func(d time.Duration) {
				waits++
				at = at.Add(d)
				if c.want > 0 { // a rate that tells the tries apart
					count += uint64(d/time.Millisecond) * uint64(1000+waits)
				}
			})
			if khz != c.want || waits != c.waits {
				t.Errorf("%d kHz after %d waits, want %d after %d", khz, waits, c.want, c.waits)
			}
		})
	}
}

func TestReboot(t *testing.T) {
	for _, reboot := range []bool{false, true} {
		c := sample()
		c.Reboot = reboot
		if slices.Contains(c.QEMUArgs(), "-no-reboot") == reboot {
			t.Errorf("reboot %v: arguments %s", reboot, c.QEMUArgs())
		}
	}
}

func TestIOMMU(t *testing.T) {
	for kind, want := range map[string]string{
		"":          "-device intel-iommu,caching-mode=on,intremap=on",
		IOMMUIntel:  "-device intel-iommu,caching-mode=on,intremap=on",
		IOMMUVirtio: "-device virtio-iommu-pci,addr=2.0",
	} {
		c := sample()
		c.IOMMU = kind
		if got := strings.Join(c.QEMUArgs(), " "); !strings.Contains(got, want) || strings.Count(got, "iommu-pci,")+strings.Count(got, "intel-iommu,") != 1 {
			t.Errorf("%q: arguments %s, want one %s", kind, got, want)
		}
	}
	c := sample()
	c.IOMMU = IOMMUNone
	if got := strings.Join(c.QEMUArgs(), " "); strings.Contains(got, "iommu") {
		t.Errorf("none: arguments %s", got)
	}
}

// A shell must read the printed line as the very arguments QEMU gets.
func TestCommandLineCanBePasted(t *testing.T) {
	c := sample()
	c.Append = []string{`it's`, `"quoted"`, "$HOME", "`x`", "a;b"}
	line := c.CommandLine()
	if !strings.HasPrefix(line, "QEMU_MODULE_DIR='/q/with space' /q/ld.so /q/qemu -name toebox ") {
		t.Errorf("line starts %.80s", line)
	}
	_, args, _ := strings.Cut(line, "/q/qemu ")
	out, err := exec.Command("sh", "-c", `printf '%s\0' `+args).Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	if !slices.Equal(got, c.QEMUArgs()) {
		t.Errorf("a shell reads %q, want %q", got, c.QEMUArgs())
	}
}

func TestConsole(t *testing.T) {
	var log bytes.Buffer
	var lines []string
	c := newConsole(&log, func(l string) { lines = append(lines, l) })
	for _, s := range []string{"one\r\ntw", "o\nth", "ree", "\n\n", strings.Repeat("x", 3*maxLine) + "\nlast"} {
		if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
	}
	if want := []string{"one", "two", "three", "", strings.Repeat("x", maxLine)}; !slices.Equal(lines, want) {
		t.Errorf("lines = %.60q", lines)
	}
	if got := c.Tail(1); got != "last" {
		t.Errorf("tail = %q", got)
	}
	c.room = 2
	log.Reset()
	c.Write([]byte("abc"))
	c.Write([]byte("def"))
	if log.String() != "ab\n[log is full]\n" {
		t.Errorf("full log = %q", log.String())
	}
}

func TestPanicText(t *testing.T) {
	for line, want := range map[string]string{
		"[    5.1] Kernel panic - not syncing: sysrq triggered crash":         "sysrq triggered crash",
		"<0>[    5.1] Kernel panic - not syncing: x":                          "x",
		"[    5.1][  T1] Kernel panic - not syncing: Attempted to kill init!": "Attempted to kill init!",
		"Kernel panic - not syncing: VFS":                                     "VFS",
		"a test says: Kernel panic - not syncing: no":                         "-",
		"[    5.1] ---[ end Kernel panic - not syncing: sysrq ]---":           "-",
		"": "-",
	} {
		got, ok := panicText(line)
		if !ok {
			got = "-"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
