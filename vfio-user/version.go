// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/bits"
	"syscall"
)

// Version of the protocol that this package speaks.
const (
	versionMajor uint16 = 0
	versionMinor uint16 = 1
)

// Defaults of capabilities that a peer leaves out, vfio-user "Version".
const (
	defaultMaxFDs      = 1
	defaultMaxTransfer = 1 << 20
	defaultMaxDMAMaps  = 65535
	defaultPageSizes   = 4096
)

// maxVersionText bounds what is given to the JSON decoder.
const maxVersionText = 4096

// limits are the capabilities in force on a connection.
type limits struct {
	maxFDs        int    // file descriptors in one message to us
	maxTransfer   int    // bytes of data in one region or DMA message
	maxDMAMaps    int    // mappings at one time
	pageSizes     uint64 // bit mask; the lowest bit is the granule of DMA maps
	maxBitmap     int    // bytes of a dirty bitmap
	writeMultiple bool
	sparseFDs     bool // areas of a region may be in several files
	twin          bool // the server's commands have a socket of their own
	peerFDs       int  // file descriptors that the peer takes in one message
	migrates      bool // own: the device can be moved
}

// granule returns the alignment that DMA maps must have.
func (l limits) granule() uint64 { return l.pageSizes & -l.pageSizes }

// capabilities is the JSON form. A pointer is nil if the key is absent.
type capabilities struct {
	MaxFDs        *uint64 `json:"max_msg_fds,omitempty"`
	MaxTransfer   *uint64 `json:"max_data_xfer_size,omitempty"`
	MaxDMAMaps    *uint64 `json:"max_dma_maps,omitempty"`
	PageSizes     *uint64 `json:"pgsizes,omitempty"`
	WriteMultiple *bool   `json:"write_multiple,omitempty"`
	SparseMmapFDs *bool   `json:"sparse_mmap_fds,omitempty"`

	Migration  *migrationCapability `json:"migration,omitempty"`
	TwinSocket *twinSocket          `json:"twin_socket,omitempty"`
}

// twinSocket is the capability of that name. Index is the place of the client's
// end among the descriptors of the reply.
type twinSocket struct {
	Supported bool    `json:"supported"`
	Index     *uint64 `json:"fd_index,omitempty"`
}

// migrationCapability is about dirty bitmaps. The newest specification has none
// of it; a server that names it can migrate its device.
type migrationCapability struct {
	PageSize  *uint64 `json:"pgsize,omitempty"`
	MaxBitmap *uint64 `json:"max_bitmap_size,omitempty"` // bytes
}

type versionText struct {
	Capabilities capabilities `json:"capabilities"`
}

// parseVersion decodes the payload of VFIO_USER_VERSION.
func parseVersion(b []byte) (v versionPrefix, text versionText, err error) {
	if err := v.UnmarshalBinary(b); err != nil {
		return v, text, err
	}
	b = b[versionPrefixSize:]
	if len(b) == 0 {
		return v, text, nil
	}
	if len(b) > maxVersionText {
		return v, text, fmt.Errorf("%d bytes of JSON", len(b))
	}
	b, ok := bytes.CutSuffix(b, []byte{0})
	if !ok {
		return v, text, fmt.Errorf("JSON without a terminating NUL")
	}
	return v, text, json.Unmarshal(b, &text)
}

// appendVersion appends the payload of VFIO_USER_VERSION to b.
func appendVersion(b []byte, v versionPrefix, text versionText) ([]byte, error) {
	t, err := json.Marshal(text)
	if err != nil {
		return b, err
	}
	b, err = v.AppendBinary(b)
	return append(append(b, t...), 0), err
}

// negotiate judges a client's proposal against what the server can do and
// appends the payload of the reply to out. The reply is never longer than the
// request and names only capabilities that the client named: QEMU reads it
// into the buffer of its request and warns about any key it does not know.
func negotiate(out, payload []byte, own limits) ([]byte, limits, error) {
	v, text, err := parseVersion(payload)
	if err != nil {
		return out, limits{}, fmt.Errorf("version: %v: %w", err, syscall.EINVAL)
	}
	if v.major != versionMajor {
		return out, limits{}, fmt.Errorf("version %d.%d: %w", v.major, v.minor, syscall.EINVAL)
	}
	reply := versionPrefix{versionMajor, min(v.minor, versionMinor)}
	in := text.Capabilities
	var say capabilities
	l := limits{maxFDs: defaultMaxFDs, maxTransfer: defaultMaxTransfer, maxDMAMaps: defaultMaxDMAMaps, pageSizes: defaultPageSizes}

	l.maxFDs, say.MaxFDs = lesser(in.MaxFDs, l.maxFDs, own.maxFDs)
	l.peerFDs, _ = lesser(in.MaxFDs, defaultMaxFDs, mostFDs)
	l.maxTransfer, say.MaxTransfer = lesser(in.MaxTransfer, l.maxTransfer, own.maxTransfer)
	l.maxDMAMaps, say.MaxDMAMaps = lesser(in.MaxDMAMaps, l.maxDMAMaps, own.maxDMAMaps)
	if l.maxTransfer == 0 {
		return out, limits{}, fmt.Errorf("max_data_xfer_size 0: %w", syscall.EINVAL)
	}
	if in.PageSizes != nil {
		// Larger granules than ours are fine, smaller ones are not served.
		l.pageSizes = *in.PageSizes &^ (own.pageSizes&-own.pageSizes - 1)
		if l.pageSizes == 0 {
			return out, limits{}, fmt.Errorf("pgsizes %#x: %w", *in.PageSizes, syscall.EINVAL)
		}
		l.pageSizes = 1 << bits.TrailingZeros64(l.pageSizes)
		say.PageSizes = &l.pageSizes
	}
	if in.WriteMultiple != nil && *in.WriteMultiple && own.writeMultiple {
		l.writeMultiple = true
		say.WriteMultiple = &l.writeMultiple
	}
	if in.SparseMmapFDs != nil && *in.SparseMmapFDs && own.sparseFDs {
		l.sparseFDs = true
		say.SparseMmapFDs = &l.sparseFDs
	}

	l.maxBitmap = min(l.maxTransfer, own.maxBitmap)
	if mig := in.Migration; mig != nil {
		if p := mig.PageSize; p != nil && (*p == 0 || *p&(*p-1) != 0) {
			return out, limits{}, fmt.Errorf("migration pgsize %#x: %w", *p, syscall.EINVAL)
		}
		var most *uint64
		l.maxBitmap, most = lesser(mig.MaxBitmap, l.maxBitmap, l.maxBitmap)
		if own.migrates {
			say.Migration = &migrationCapability{mig.PageSize, most}
		}
	}

	n := len(out)
	room := len(payload)
	if in.TwinSocket != nil && in.TwinSocket.Supported && own.twin && l.peerFDs > 0 {
		l.twin = true
		say.TwinSocket = &twinSocket{Supported: true, Index: new(uint64)} // the only descriptor
		// Who asks for it expects an index, which is longer than the question.
		room = maxVersionText
	}
	full, err := appendVersion(out, reply, versionText{say})
	if err != nil {
		return out, limits{}, err
	}
	if len(full)-n <= room {
		return full, l, nil
	}
	// A request too short for its own answer left something out: then the
	// reply does too, and the values in force stay within what was proposed.
	l.twin = false
	out, err = reply.AppendBinary(full[:n])
	return out, l, err
}

// lesser returns the smaller of a proposal and our own limit, and what to say
// about it: nothing if the peer did not propose, in which case its default
// bounds us.
func lesser(proposed *uint64, preset, own int) (int, *uint64) {
	if proposed == nil {
		return min(preset, own), nil
	}
	v := min(*proposed, uint64(own))
	return int(v), &v
}

// version agrees on the version and the capabilities with the server.
func (c *Client) version() error {
	fds, xfer, maps, pages := uint64(c.cfg.MaxFDs), uint64(c.cfg.MaxTransfer), uint64(c.cfg.MaxDMAMaps), uint64(pageSize)
	yes := true
	text := versionText{capabilities{
		MaxFDs: &fds, MaxTransfer: &xfer, MaxDMAMaps: &maps, PageSizes: &pages,
		SparseMmapFDs: &yes, Migration: &migrationCapability{PageSize: &pages, MaxBitmap: &xfer},
	}}
	if c.cfg.WriteMultiple {
		text.Capabilities.WriteMultiple = &c.cfg.WriteMultiple
	}
	if c.cfg.TwinSocket {
		text.Capabilities.TwinSocket = &twinSocket{Supported: true}
	}
	p, err := appendVersion(nil, versionPrefix{versionMajor, versionMinor}, text)
	if err != nil {
		return err
	}
	reply, lent, err := c.doFDs(CommandVersion, p)
	if err != nil {
		return err
	}
	defer closeFDs(lent)
	v, got, err := parseVersion(reply)
	if err != nil || v.major != versionMajor || v.minor > versionMinor {
		return fmt.Errorf("vfiouser: server answers version %d.%d (%v): %w", v.major, v.minor, err, syscall.EPROTO)
	}
	in := got.Capabilities
	l := limits{maxDMAMaps: defaultMaxDMAMaps, pageSizes: pageSize}
	// What the server leaves out has the specification's default.
	l.maxFDs, _ = lesser(in.MaxFDs, defaultMaxFDs, c.cfg.MaxFDs)
	l.maxTransfer, _ = lesser(in.MaxTransfer, defaultMaxTransfer, c.cfg.MaxTransfer)
	l.maxBitmap = l.maxTransfer
	if in.Migration != nil {
		l.maxBitmap, _ = lesser(in.Migration.MaxBitmap, l.maxTransfer, l.maxTransfer)
	}
	l.writeMultiple = in.WriteMultiple != nil && *in.WriteMultiple && c.cfg.WriteMultiple
	if l.maxTransfer == 0 {
		return fmt.Errorf("vfiouser: server takes no data: %w", syscall.EPROTO)
	}
	c.limits = l
	return c.startTwin(in.TwinSocket, lent)
}
