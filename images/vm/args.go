// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"toebox/images/guest"
	"toebox/images/toolchain"
)

// Config describes a machine.
type Config struct {
	QEMU      *toolchain.QEMU
	Kernel    *toolchain.Kernel
	Initramfs string
	Accel     string // AccelKVM or AccelTCG
	TSC       int    // kHz that the guest's time stamp counter has; 0: its kernel is to find out
	CPUs      int
	MemoryMiB int
	HugePages int      // of 2 MiB, kept free for DMA
	IOMMU     string   // IOMMUIntel, which is the default, IOMMUVirtio or IOMMUNone
	Devices   []string // paths of the adapters' vfio-user sockets
	Dir       string   // for console.log, qemu.log and cmdline
	SocketDir string
	GDB       bool     // listen for a debugger of the guest's kernel
	Reboot    bool     // a reset starts the guest again, see [VM.Restarted], and does not end the machine
	Append    []string // more of the kernel's command line
	Args      []string // more of QEMU's
}

// Defaults of a machine.
const (
	DefaultCPUs      = 2
	DefaultMemoryMiB = 1024
	DefaultHugePages = 64 // twice what the driver asks for by itself
)

// firstSlot is the adapters' first one on the PCI bus.
const firstSlot = 5

// Virtual IOMMUs.
const (
	IOMMUIntel  = "intel"  // translates and remaps interrupts
	IOMMUVirtio = "virtio" // translates; its driver is a module
	IOMMUNone   = "none"   // devices reach all memory
)

// Names of sockets below Config.SocketDir.
const (
	qmpSocket     = "qmp"
	controlSocket = "control"
	// DeviceSocket is where callers put the adapter.
	DeviceSocket = "device"
)

// kernelLine is what makes the kernel start fastest without KVM and die loudly:
// self-tests, entropy collectors and keyrings nobody needs here take a tenth each.
// Pages, first of all the 128 MiB of huge ones, are cleared when they are used and not
// when they are put aside as well; and a key derivation that nobody asks for does not
// stop the start until the archive of the root file system is unpacked.
func kernelLine(c *Config) string {
	words := []string{
		"console=ttyS0", "quiet", "panic=-1", "oops=panic", "mitigations=off",
		"cryptomgr.notests", "tsc=reliable", "no_timer_check", "8250.nr_uarts=1", "i8042.noaux", "i8042.nokbd",
		"initcall_blacklist=jent_mod_init,load_system_certificate_list,init_encrypted,crypto_kdf108_init", "nowatchdog",
		"init_on_alloc=0",
	}
	if c.IOMMU != IOMMUNone {
		words = append(words, "intel_iommu=on")
	}
	if c.HugePages > 0 {
		words = append(words, fmt.Sprintf("hugepages=%d", c.HugePages))
	}
	if c.TSC > 0 {
		words = append(words, fmt.Sprintf("tsc_early_khz=%d", c.TSC))
	}
	return strings.Join(append(words, c.Append...), " ")
}

// DeviceArg returns the value of QEMU's -device for the adapter at a socket.
func DeviceArg(socket string) string { return deviceArg(socket, 0) }

// deviceArg is DeviceArg of one adapter of several.
func deviceArg(socket string, adapter int) string {
	type address struct {
		Type string `json:"type"`
		Path string `json:"path"`
	}
	b, err := json.Marshal(struct {
		Driver string  `json:"driver"`
		Addr   string  `json:"addr"`
		Socket address `json:"socket"`
	}{"vfio-user-pci", fmt.Sprintf("%x.0", firstSlot+adapter), address{"unix", socket}})
	if err != nil {
		return ""
	}
	return string(b)
}

// iommu returns QEMU's arguments for the IOMMU. Until the guest's driver is there,
// devices behind a virtio-iommu reach all memory.
func (c *Config) iommu() []string {
	switch c.IOMMU {
	case IOMMUNone:
		return nil
	case IOMMUVirtio:
		return []string{"-device", "virtio-iommu-pci,addr=2.0"}
	}
	return []string{"-device", "intel-iommu,caching-mode=on,intremap=on"}
}

// QEMUArgs returns QEMU's arguments.
func (c *Config) QEMUArgs() []string {
	args := []string{
		"-name", "toebox", "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35,kernel-irqchip=split,memory-backend=ram",
		"-accel", c.Accel, "-cpu", "max", "-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprintf("%dM", c.MemoryMiB),
		"-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%dM,share=on", c.MemoryMiB),
		"-kernel", c.Kernel.Image, "-initrd", c.Initramfs, "-append", kernelLine(c),
	}
	if !c.Reboot {
		args = append(args, "-no-reboot")
	}
	if c.QEMU.QBoot {
		args = append(args, "-bios", "qboot.rom")
	}
	socket := func(id, name string) string {
		return fmt.Sprintf("socket,id=%s,path=%s,server=on,wait=off", id, quoteComma(filepath.Join(c.SocketDir, name)))
	}
	args = append(args, c.iommu()...)
	args = append(args,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-device", "virtio-serial-pci,addr=3.0", "-chardev", socket("control", controlSocket),
		"-device", "virtserialport,chardev=control,name="+guest.Port,
		"-qmp", "unix:"+quoteComma(filepath.Join(c.SocketDir, qmpSocket))+",server=on,wait=off",
	)
	for n, socket := range c.Devices {
		args = append(args, "-device", deviceArg(socket, n))
	}
	if c.GDB {
		args = append(args, "-s")
	}
	return append(args, c.Args...)
}

// quoteComma writes a value as QEMU's option parser wants it.
func quoteComma(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// CommandLine returns the machine's command as a shell would take it.
func (c *Config) CommandLine() string {
	return ShellWords(slices.Concat(c.QEMU.Env, c.QEMU.Argv, c.QEMUArgs())...)
}

// ShellWords quotes words for a POSIX shell, where they need it, and joins them.
func ShellWords(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = quoteShell(w)
	}
	return strings.Join(quoted, " ")
}

// quoteShell quotes a word for a POSIX shell, if it needs it.
func quoteShell(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	// NAME=value keeps its name bare, or it would not be an assignment.
	if name, value, ok := strings.Cut(s, "="); ok && name != "" && strings.Trim(name, plain) == "" && !strings.HasPrefix(name, "-") {
		return name + "='" + strings.ReplaceAll(value, "'", `'\''`) + "'"
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
