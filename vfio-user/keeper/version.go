// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"syscall"
)

// Defaults of capabilities that a peer leaves out, vfio-user "Version".
const (
	presetFDs      = 1
	presetTransfer = 1 << 20
	presetMaps     = 65535
	presetPages    = 4096
)

// maxVersionText bounds what is given to the JSON decoder.
const maxVersionText = 4096

// capabilityText is the JSON form of what can be agreed on. Anything else, as
// the twin socket, cannot be put back or kept apart, and is not proposed.
type capabilityText struct {
	PageSizes     *uint64         `json:"pgsizes,omitempty"`
	MaxFDs        *uint64         `json:"max_msg_fds,omitempty"`
	MaxDMAMaps    *uint64         `json:"max_dma_maps,omitempty"`
	MaxTransfer   *uint64         `json:"max_data_xfer_size,omitempty"`
	Migration     json.RawMessage `json:"migration,omitempty"`
	WriteMultiple *bool           `json:"write_multiple,omitempty"`
}

type versionText struct {
	Capabilities capabilityText `json:"capabilities"`
}

// version is the payload of VFIO_USER_VERSION.
type version struct {
	major, minor uint16
	text         *versionText // nil: none
}

func parseVersion(p []byte) (v version, err error) {
	if len(p) < 4 || len(p) > maxVersionText {
		return v, fmt.Errorf("version in %d bytes: %w", len(p), syscall.EINVAL)
	}
	v = version{major: binary.NativeEndian.Uint16(p), minor: binary.NativeEndian.Uint16(p[2:])}
	if len(p) == 4 {
		return v, nil
	}
	text, ok := bytes.CutSuffix(p[4:], []byte{0})
	if !ok {
		return v, fmt.Errorf("version text without a terminating NUL: %w", syscall.EINVAL)
	}
	v.text = new(versionText)
	if err := json.Unmarshal(text, v.text); err != nil {
		return v, fmt.Errorf("version text: %v: %w", err, syscall.EINVAL)
	}
	return v, nil
}

func (v version) append(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint16(b, v.major)
	b = binary.NativeEndian.AppendUint16(b, v.minor)
	if v.text == nil {
		return b, nil
	}
	text, err := json.Marshal(v.text)
	return append(append(b, text...), 0), err
}

// limit lowers a proposal to what the keeper itself can pass on.
func (v version) limit(fds, transfer uint64) {
	if v.text == nil {
		return
	}
	for _, c := range []struct {
		p   *uint64
		max uint64
	}{{v.text.Capabilities.MaxFDs, fds}, {v.text.Capabilities.MaxTransfer, transfer}} {
		if c.p != nil {
			*c.p = min(*c.p, c.max)
		}
	}
}

// agreement is what holds on a connection.
type agreement struct {
	fds, transfer, maps, pages uint64
	multi                      bool
}

// agreement returns what the reply v to the proposal asked lays down.
func (v version) agreement(asked version) agreement {
	var in, out capabilityText
	if asked.text != nil {
		in = asked.text.Capabilities
	}
	if v.text != nil {
		out = v.text.Capabilities
	}
	lesser := func(a, b *uint64, preset uint64) uint64 {
		x, y := preset, preset
		if a != nil {
			x = *a
		}
		if b != nil {
			y = *b
		}
		return min(x, y)
	}
	return agreement{
		fds:      lesser(in.MaxFDs, out.MaxFDs, presetFDs),
		transfer: lesser(in.MaxTransfer, out.MaxTransfer, presetTransfer),
		maps:     lesser(in.MaxDMAMaps, out.MaxDMAMaps, presetMaps),
		pages:    lesser(in.PageSizes, out.PageSizes, presetPages),
		multi:    out.WriteMultiple != nil && *out.WriteMultiple,
	}
}

// difference says what a new server has agreed to less than the old one.
func (a agreement) difference(old agreement) string {
	for _, c := range []struct {
		name     string
		now, old uint64
	}{{"max_msg_fds", a.fds, old.fds}, {"max_data_xfer_size", a.transfer, old.transfer}, {"max_dma_maps", a.maps, old.maps}} {
		if c.now < c.old {
			return fmt.Sprintf("version: %s %d became %d", c.name, c.old, c.now)
		}
	}
	if granule := func(p uint64) uint64 { return p & -p }; granule(a.pages) > granule(old.pages) {
		return fmt.Sprintf("version: pgsizes %#x became %#x", old.pages, a.pages)
	}
	if old.multi && !a.multi {
		return "version: write_multiple is gone"
	}
	return ""
}
