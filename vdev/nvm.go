// SPDX-License-Identifier: Apache-2.0

package vdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"toebox/vdev/abi"
)

// Layout of the non-volatile image (SPEC.md §10).
const (
	nvmMagic       = "TOENVM01"
	nvmCRC         = 8
	nvmFlags       = 12
	nvmMAC         = 16
	nvmReserved    = 22
	nvmSerial      = 24
	nvmSerialSize  = 32
	nvmName        = 56
	nvmNameSize    = 64
	nvmCount       = 120
	nvmReserved2   = 124
	nvmEntries     = 128
	nvmEntrySize   = 16
	nvmMaxDefaults = 24
)

// Identity is what the non-volatile image says about the adapter.
type Identity struct {
	MAC      [6]byte
	Serial   string
	Name     string // of the firmware
	Defaults map[abi.Attribute]uint64
}

// nvmImage is an image of 512 bytes with a valid check sum.
type nvmImage [abi.NVMSize]byte

// encodeNVM makes the image of an identity. Strings that are too long are cut.
func encodeNVM(id Identity) *nvmImage {
	var b nvmImage
	copy(b[:], nvmMagic)
	copy(b[nvmMAC:], id.MAC[:])
	copy(b[nvmSerial:nvmSerial+nvmSerialSize], id.Serial)
	copy(b[nvmName:nvmName+nvmNameSize], id.Name)
	n := 0
	for _, a := range abi.Attributes() { // in order of ids
		v, ok := id.Defaults[a.ID]
		if !ok || n == nvmMaxDefaults {
			continue
		}
		e := b[nvmEntries+n*nvmEntrySize:]
		binary.LittleEndian.PutUint16(e, uint16(a.ID))
		binary.LittleEndian.PutUint64(e[8:], v)
		n++
	}
	binary.LittleEndian.PutUint32(b[nvmCount:], uint32(n))
	b.seal()
	return &b
}

func (b *nvmImage) sum() uint32 { return crc32.ChecksumIEEE(b[nvmFlags:]) }

// seal computes the check sum.
func (b *nvmImage) seal() { binary.LittleEndian.PutUint32(b[nvmCRC:], b.sum()) }

// decode checks the image and returns what it says.
func (b *nvmImage) decode() (Identity, error) {
	switch {
	case string(b[:len(nvmMagic)]) != nvmMagic:
		return Identity{}, errors.New("no magic number")
	case binary.LittleEndian.Uint32(b[nvmCRC:]) != b.sum():
		return Identity{}, errors.New("wrong check sum")
	case binary.LittleEndian.Uint16(b[nvmReserved:]) != 0, binary.LittleEndian.Uint32(b[nvmReserved2:]) != 0:
		return Identity{}, errors.New("a reserved field is set")
	case b[nvmMAC]&1 != 0:
		return Identity{}, errors.New("the MAC address is a group's")
	}
	n := binary.LittleEndian.Uint32(b[nvmCount:])
	if n > nvmMaxDefaults {
		return Identity{}, fmt.Errorf("%d default attributes, at most %d fit", n, nvmMaxDefaults)
	}
	id := Identity{
		MAC:      [6]byte(b[nvmMAC:]),
		Serial:   cString(b[nvmSerial : nvmSerial+nvmSerialSize]),
		Name:     cString(b[nvmName : nvmName+nvmNameSize]),
		Defaults: make(map[abi.Attribute]uint64, n),
	}
	for k := range int(n) {
		e := b[nvmEntries+k*nvmEntrySize:]
		if binary.LittleEndian.Uint16(e[2:]) != 0 || binary.LittleEndian.Uint32(e[4:]) != 0 {
			return Identity{}, fmt.Errorf("default %d: a reserved field is set", k)
		}
		id.Defaults[abi.Attribute(binary.LittleEndian.Uint16(e))] = binary.LittleEndian.Uint64(e[8:])
	}
	return id, nil
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// loadNVM reads the image file. A file that is not there gives the factory's
// image; one that is damaged gives it too, replaces the file and reports
// corrupt. An empty path keeps the image in memory only.
func loadNVM(path string, factory *nvmImage) (b *nvmImage, corrupt bool, err error) {
	if path == "" {
		return factory, false, nil
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return factory, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("vdev: non-volatile image: %w", err)
	}
	defer file.Close()
	// One byte more than fits shows a file that is too long.
	data, err := io.ReadAll(io.LimitReader(file, abi.NVMSize+1))
	if err != nil {
		return nil, false, fmt.Errorf("vdev: non-volatile image: %w", err)
	}
	b = &nvmImage{}
	if len(data) == abi.NVMSize {
		copy(b[:], data)
		if _, err := b.decode(); err == nil {
			return b, false, nil
		}
	}
	if err := storeNVM(path, factory); err != nil {
		return nil, true, err
	}
	return factory, true, nil
}

// storeNVM replaces the image file in one step.
func storeNVM(path string, b *nvmImage) error {
	if path == "" {
		return nil
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("vdev: non-volatile image: %w", err)
	}
	_, err = file.Write(b[:])
	if err == nil {
		err = file.Sync()
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		_ = os.Remove(file.Name())
		return fmt.Errorf("vdev: non-volatile image: %w", err)
	}
	return nil
}

// nvm is the non-volatile image behind its registers. [Function.mu] guards it.
type nvm struct {
	path      string
	factory   *nvmImage
	committed *nvmImage
	shadow    nvmImage // what the registers read and write
	status    uint32   // NVM_STATUS without bit 8
	corrupt   uint32   // bit 8 of NVM_STATUS
	writing   bool     // a commit is on its way to the file
}

// reset loads the committed image into the shadow.
func (n *nvm) reset() {
	n.shadow = *n.committed
	n.status = abi.NVMIdle
	if n.writing {
		n.status = abi.NVMBusy
	}
}

// nvmCommand carries out a write of NVM_COMMAND.
func (f *Function) nvmCommand(command uint32) {
	n := &f.nvm
	if n.writing {
		f.badValue("NVM_COMMAND", command)
		return
	}
	addr := f.regs[regSlot(abi.RegNVMAddr)]
	n.status = abi.NVMDone
	switch command {
	case abi.NVMRead, abi.NVMWrite:
		if addr%4 != 0 || addr > abi.NVMSize-4 {
			n.status = abi.NVMFailed
			return
		}
		word, data := n.shadow[addr:addr+4], &f.regs[regSlot(abi.RegNVMData)]
		if command == abi.NVMRead {
			*data = binary.LittleEndian.Uint32(word)
		} else {
			binary.LittleEndian.PutUint32(word, *data)
		}
	case abi.NVMCommit:
		f.commitNVM()
	case abi.NVMRestore:
		n.shadow = *n.factory
	default:
		n.status = abi.NVMFailed
		f.badValue("NVM_COMMAND", command)
	}
}

// commitNVM writes the shadow to the file, in a goroutine because it waits for
// the disk. A shadow that is no image is refused.
func (f *Function) commitNVM() {
	n := &f.nvm
	image := n.shadow
	image.seal()
	if _, err := image.decode(); err != nil {
		n.status = abi.NVMFailed
		f.misbehaves("non-volatile image refused", "reason", err.Error())
		return
	}
	n.shadow = image
	n.status, n.writing = abi.NVMBusy, true
	f.work.Go(func() {
		err := storeNVM(n.path, &image)
		f.mu.Lock()
		defer f.mu.Unlock()
		n.writing = false
		n.status = abi.NVMDone
		if err != nil {
			n.status = abi.NVMFailed
			f.log.Error("commit of the non-volatile image failed", "err", err)
			return
		}
		n.committed = &image
	})
}
