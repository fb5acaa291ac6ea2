// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"encoding/binary"
	"fmt"
	"io"
	"syscall"
)

// setData makes a request VFIO_USER_DEVICE_FEATURE whose reply is as long as
// itself and returns the data in that.
func (c *Client) setData(flags uint32, data []byte) ([]byte, error) {
	head, _ := featureHead{uint32(featureHeadSize + len(data)), flags}.AppendBinary(nil)
	p, err := c.do(CommandFeature, head, data)
	if err != nil {
		return nil, err
	}
	var r featureHead
	if r.UnmarshalBinary(p) != nil || r.flags != flags || len(p) != featureHeadSize+len(data) {
		return nil, short(CommandFeature)
	}
	return p[featureHeadSize:], nil
}

// getData asks for size bytes of data of a feature.
func (c *Client) getData(f Feature, request []byte, size int) ([]byte, error) {
	head, _ := featureHead{uint32(featureHeadSize + size), uint32(f) | featureGet}.AppendBinary(nil)
	p, err := c.do(CommandFeature, head, request)
	if err != nil {
		return nil, err
	}
	var r featureHead
	if r.UnmarshalBinary(p) != nil || r.flags != uint32(f)|featureGet || len(p) < featureHeadSize+size {
		return nil, short(CommandFeature)
	}
	return p[featureHeadSize:][:size], nil
}

// Probe returns nil if the server has a feature, and it can be read and set
// where asked for; ENOTTY otherwise.
func (c *Client) Probe(f Feature, get, set bool) error {
	flags := uint32(f) | featureProbe
	if get {
		flags |= featureGet
	}
	if set {
		flags |= featureSet
	}
	_, err := c.setData(flags, nil)
	return err
}

// Migration returns nil if the device can be moved to another server, and
// whether it has StatePrecopy; ENOTTY if it cannot.
func (c *Client) Migration() (precopy bool, err error) {
	p, err := c.getData(FeatureMigration, nil, 8)
	if err != nil {
		return false, err
	}
	flags := binary.NativeEndian.Uint64(p)
	if flags&migrationStopCopy == 0 {
		return false, short(CommandFeature)
	}
	return flags&migrationPrecopy != 0, nil
}

// MigrationState returns where the device is.
func (c *Client) MigrationState() (MigrationState, error) {
	p, err := c.getData(FeatureMigrationState, nil, featureStateSize)
	if err != nil {
		return 0, err
	}
	return MigrationState(binary.NativeEndian.Uint32(p)), nil
}

// SetMigrationState takes the device to a state by the shortest way. After an
// error it may be on the way, or in StateError.
func (c *Client) SetMigrationState(s MigrationState) error {
	data, _ := featureState{uint32(s), noDataFD}.AppendBinary(nil)
	_, err := c.setData(uint32(FeatureMigrationState)|featureSet, data)
	return err
}

// ReadState reads the next bytes of the device's state, as many as one message
// can hold at most. io.EOF says that there are none: at all in StateStopCopy, for
// the moment in StatePrecopy.
func (c *Client) ReadState(p []byte) (int, error) {
	p = p[:min(len(p), c.limits.maxTransfer)]
	head, _ := stateData{uint32(stateDataSize + len(p)), uint32(len(p))}.AppendBinary(nil)
	b, err := c.do(CommandMigrationDataRead, head, nil)
	if err != nil {
		return 0, err
	}
	var r stateData
	if r.UnmarshalBinary(b) != nil || uint64(r.size) > uint64(len(p)) || uint64(r.size) > uint64(len(b)-stateDataSize) {
		return 0, short(CommandMigrationDataRead)
	}
	if r.size == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return copy(p, b[stateDataSize:][:r.size]), nil
}

// WriteState gives the device the next bytes of a state, in several messages if
// one cannot hold them.
func (c *Client) WriteState(p []byte) error {
	for {
		n := min(len(p), c.limits.maxTransfer)
		head, _ := stateData{uint32(stateDataSize + n), uint32(n)}.AppendBinary(nil)
		b, err := c.do(CommandMigrationDataWrite, head, p[:n])
		if err != nil {
			return err
		}
		// Older servers say nothing about how much they took.
		var r stateData
		if len(b) > 0 && (r.UnmarshalBinary(b) != nil || int64(r.size) != int64(n)) {
			return short(CommandMigrationDataWrite)
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
	}
}

// PrecopyInfo returns how many bytes of state there are to read in StatePrecopy:
// those that are best read before the device stops, and what has changed since.
func (c *Client) PrecopyInfo() (initial, dirty uint64, err error) {
	head, _ := precopyInfo{argsz: precopyInfoSize}.AppendBinary(nil)
	p, err := c.do(CommandPrecopyInfo, head, nil)
	if err != nil {
		return 0, 0, err
	}
	var r precopyInfo
	if r.UnmarshalBinary(p) != nil {
		return 0, 0, short(CommandPrecopyInfo)
	}
	return r.initial, r.dirty, nil
}

// Range is a range of IOVAs.
type Range struct{ IOVA, Len uint64 }

// StartDirtyLog has the server log the device's writes to the given ranges at
// least, or to all of memory, and returns the page size that it chose.
func (c *Client) StartDirtyLog(pageSize uint64, ranges ...Range) (uint64, error) {
	data, _ := logControl{pageSize: pageSize, ranges: uint32(len(ranges))}.AppendBinary(nil)
	for _, r := range ranges {
		data = binary.NativeEndian.AppendUint64(data, r.IOVA)
		data = binary.NativeEndian.AppendUint64(data, r.Len)
	}
	p, err := c.setData(uint32(FeatureDirtyLogStart)|featureSet, data)
	if err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(p), nil
}

// StopDirtyLog ends the log.
func (c *Client) StopDirtyLog() error {
	data, _ := logControl{}.AppendBinary(nil)
	_, err := c.setData(uint32(FeatureDirtyLogStop)|featureSet, data)
	return err
}

// DirtyPages takes a range out of the log: page i, counted from iova in pages of
// pageSize bytes, was written to if bit i%64 of word i/64 is set. It makes as
// many requests as the server's limit on a bitmap asks for; with an error, what
// was taken before is returned.
func (c *Client) DirtyPages(iova, size, pageSize uint64) ([]uint64, error) {
	most, _, err := bitmapSize(iova, size, pageSize, mostTransfer)
	if err != nil {
		return nil, fmt.Errorf("vfiouser: dirty pages: %w", err)
	}
	words := make([]uint64, 0, most/8)
	step := uint64(c.limits.maxBitmap) / 8 // words a request
	if step == 0 {
		return nil, fmt.Errorf("vfiouser: dirty pages: server sends no bitmaps: %w", syscall.E2BIG)
	}
	for len(words) < most/8 {
		left := size - uint64(len(words))*64*pageSize // no overflow: it is not 0
		n := left
		if k := uint64(most/8 - len(words)); k > step {
			n = step * 64 * pageSize
		}
		bytes := int((n-1)/pageSize/64+1) * 8
		at := iova + uint64(len(words))*64*pageSize
		data, _ := logReport{at, n, pageSize}.AppendBinary(nil)
		p, err := c.getData(FeatureDirtyLogReport, data, logReportSize+bytes)
		if err != nil {
			return words, err
		}
		words = appendWords(words, p[logReportSize:])
	}
	return words, nil
}

// appendWords appends a bitmap, which is little-endian.
func appendWords(words []uint64, p []byte) []uint64 {
	for ; len(p) >= 8; p = p[8:] {
		words = append(words, binary.LittleEndian.Uint64(p))
	}
	return words
}

// UnmapDirty is Unmap, and takes the range out of the log as DirtyPages does,
// with what the device wrote to it until the very end. Nothing is unmapped if
// writes are not being logged.
func (c *Client) UnmapDirty(iova, size, pageSize uint64) (uint64, []uint64, error) {
	n, _, err := bitmapSize(iova, size, pageSize, c.limits.maxBitmap)
	if err != nil {
		return 0, nil, fmt.Errorf("vfiouser: unmap: %w", err)
	}
	const head = dmaUnmapSize + dirtyBitmapSize
	r := dmaUnmap{argsz: uint32(head + n), flags: dmaUnmapDirtyBitmap, addr: iova, size: size}
	p, _ := r.AppendBinary(nil)
	p, _ = dirtyBitmap{pageSize, uint64(n)}.AppendBinary(p)
	b, err := c.do(CommandDMAUnmap, p, nil)
	if err != nil {
		return 0, nil, err
	}
	if r.UnmarshalBinary(b) != nil || len(b) < head+n {
		return 0, nil, short(CommandDMAUnmap)
	}
	return r.size, appendWords(nil, b[head:][:n]), nil
}
