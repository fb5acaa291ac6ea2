// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"
)

// Feature is an index of VFIO_USER_DEVICE_FEATURE.
type Feature uint16

// Features, vfio-user "Device Features" (VFIO_DEVICE_FEATURE_*).
const (
	FeatureMigration      Feature = 1 // get: what the device can do
	FeatureMigrationState Feature = 2 // get and set: MIG_DEVICE_STATE
	FeatureDirtyLogStart  Feature = 6 // set: DMA_LOGGING_START
	FeatureDirtyLogStop   Feature = 7 // set: DMA_LOGGING_STOP
	FeatureDirtyLogReport Feature = 8 // get: DMA_LOGGING_REPORT
)

// Flags of VFIO_USER_DEVICE_FEATURE, above the index.
const (
	featureIndex uint32 = 1<<16 - 1
	featureGet   uint32 = 1 << 16
	featureSet   uint32 = 1 << 17
	featureProbe uint32 = 1 << 18
)

// Flags of FeatureMigration (VFIO_MIGRATION_*).
const (
	migrationStopCopy uint64 = 1 << 0
	migrationPrecopy  uint64 = 1 << 2
)

// featureHead opens request and reply of VFIO_USER_DEVICE_FEATURE.
type featureHead struct{ argsz, flags uint32 }

const featureHeadSize = 8

func (m featureHead) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint32(b, m.argsz)
	return binary.NativeEndian.AppendUint32(b, m.flags), nil
}

func (m *featureHead) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = featureHead{c.u32(), c.u32()}
	return c.err()
}

// featureState is the data of FeatureMigrationState.
type featureState struct{ state, dataFD uint32 }

const (
	featureStateSize = 8
	noDataFD         = ^uint32(0) // migration data goes by messages
)

func (m featureState) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint32(b, m.state)
	return binary.NativeEndian.AppendUint32(b, m.dataFD), nil
}

func (m *featureState) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = featureState{c.u32(), c.u32()}
	return c.err()
}

// logControl opens the data of FeatureDirtyLogStart and FeatureDirtyLogStop;
// ranges may follow.
type logControl struct {
	pageSize         uint64
	ranges, reserved uint32
}

const (
	logControlSize = 16
	logRangeSize   = 16 // iova and length, u64 each
)

func (m logControl) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint64(b, m.pageSize)
	b = binary.NativeEndian.AppendUint32(b, m.ranges)
	return binary.NativeEndian.AppendUint32(b, m.reserved), nil
}

func (m *logControl) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = logControl{c.u64(), c.u32(), c.u32()}
	return c.err()
}

// logReport opens the data of FeatureDirtyLogReport; in the reply the bitmap
// follows.
type logReport struct{ iova, length, pageSize uint64 }

const logReportSize = 24

func (m logReport) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint64(b, m.iova)
	b = binary.NativeEndian.AppendUint64(b, m.length)
	return binary.NativeEndian.AppendUint64(b, m.pageSize), nil
}

func (m *logReport) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = logReport{c.u64(), c.u64(), c.u64()}
	return c.err()
}

// dirtyBitmap follows a dmaUnmap with dmaUnmapDirtyBitmap; in the reply the
// bitmap follows, size bytes long.
type dirtyBitmap struct{ pageSize, size uint64 }

const dirtyBitmapSize = 16

func (m dirtyBitmap) AppendBinary(b []byte) ([]byte, error) {
	b = binary.NativeEndian.AppendUint64(b, m.pageSize)
	return binary.NativeEndian.AppendUint64(b, m.size), nil
}

func (m *dirtyBitmap) UnmarshalBinary(b []byte) error {
	c := cursor{b: b}
	*m = dirtyBitmap{c.u64(), c.u64()}
	return c.err()
}

// featureOps returns what can be done with a feature, 0 if there is none.
func (s *Server) featureOps(f Feature) uint32 {
	switch f {
	case FeatureMigration:
		if s.migration.dev != nil {
			return featureGet
		}
	case FeatureMigrationState:
		if s.migration.dev != nil {
			return featureGet | featureSet
		}
	case FeatureDirtyLogStart, FeatureDirtyLogStop:
		return featureSet
	case FeatureDirtyLogReport:
		return featureGet
	}
	return 0
}

// feature serves VFIO_USER_DEVICE_FEATURE. What is asked of a device that cannot
// do it gets ENOTTY, as with the kernel. The reply to a probe and to a set has
// the request's payload, whatever its length.
func (c *conn) feature(m *message) error {
	var r featureHead
	if err := r.UnmarshalBinary(m.payload); err != nil || r.argsz < featureHeadSize {
		return fmt.Errorf("argsz %d in %d bytes: %w", r.argsz, len(m.payload), syscall.EINVAL)
	}
	f := Feature(r.flags & featureIndex)
	ops := r.flags & (featureGet | featureSet)
	probe := r.flags&featureProbe != 0
	switch can := c.srv.featureOps(f); {
	case r.flags&^(featureIndex|featureGet|featureSet|featureProbe) != 0,
		!probe && ops != featureGet && ops != featureSet:
		return fmt.Errorf("feature flags %#x: %w", r.flags, syscall.EINVAL)
	case can == 0 || ops&^can != 0:
		return fmt.Errorf("feature %d flags %#x: %w", f, r.flags, syscall.ENOTTY)
	case (probe || ops == featureSet) && uint64(r.argsz) < uint64(len(m.payload)):
		return fmt.Errorf("argsz %d for %d bytes: %w", r.argsz, len(m.payload), syscall.EINVAL)
	case probe:
		c.out = append(c.out, m.payload...)
		return nil
	case ops == featureSet:
		return c.setFeature(f, m.payload)
	}
	return c.getFeature(f, r, m.payload[featureHeadSize:])
}

func (c *conn) setFeature(f Feature, payload []byte) error {
	start := len(c.out)
	c.out = append(c.out, payload...)
	data := c.out[start+featureHeadSize:]
	switch f {
	case FeatureMigrationState:
		var r featureState
		if err := r.UnmarshalBinary(data); err != nil {
			return fmt.Errorf("migration state in %d bytes: %w", len(data), syscall.EINVAL)
		}
		return c.srv.migration.set(MigrationState(r.state))
	case FeatureDirtyLogStart:
		var r logControl
		if err := r.UnmarshalBinary(data); err != nil {
			return fmt.Errorf("start of a log in %d bytes: %w", len(data), syscall.EINVAL)
		}
		if err := checkLogRanges(r, data[logControlSize:]); err != nil {
			return err
		}
		size, err := c.srv.dma.startLog(r.pageSize)
		binary.NativeEndian.PutUint64(data, size)
		return err
	case FeatureDirtyLogStop:
		c.srv.dma.stopLog()
	}
	return nil
}

// checkLogRanges judges the ranges that a client wants logged. They are for
// devices that cannot log everything; this one can, and does. One client says how
// many there are and then sends a pointer to them: no ranges are as good as any.
func checkLogRanges(r logControl, b []byte) error {
	if uint64(r.ranges) > uint64(len(b))/logRangeSize {
		return nil
	}
	type extent struct{ first, last uint64 }
	all := make([]extent, r.ranges)
	c := cursor{b: b}
	for i := range all {
		iova, n := c.u64(), c.u64()
		all[i] = extent{iova, iova + (n - 1)}
		if n == 0 || all[i].last < iova || r.pageSize != 0 && (iova|n)%r.pageSize != 0 {
			return fmt.Errorf("log of %#x bytes at %#x in pages of %#x: %w", n, iova, r.pageSize, syscall.EINVAL)
		}
	}
	slices.SortFunc(all, func(a, b extent) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	for i := 1; i < len(all); i++ {
		if all[i].first <= all[i-1].last {
			return fmt.Errorf("log of %#x twice: %w", all[i].first, syscall.EINVAL)
		}
	}
	return nil
}

func (c *conn) getFeature(f Feature, r featureHead, data []byte) error {
	start := len(c.out)
	c.out = append(c.out, make([]byte, featureHeadSize)...)
	switch f {
	case FeatureMigration:
		flags := migrationStopCopy
		if c.srv.migration.precopy != nil {
			flags |= migrationPrecopy
		}
		c.out = binary.NativeEndian.AppendUint64(c.out, flags)
	case FeatureMigrationState:
		c.out, _ = featureState{uint32(c.srv.migration.state()), noDataFD}.AppendBinary(c.out)
	case FeatureDirtyLogReport:
		if err := c.reportLog(r, data); err != nil {
			return err
		}
	}
	size := len(c.out) - start
	if uint64(r.argsz) < uint64(size) {
		return fmt.Errorf("argsz %d for %d bytes: %w", r.argsz, size, syscall.EINVAL)
	}
	_, _ = featureHead{uint32(size), r.flags}.AppendBinary(c.out[start:start])
	return nil
}

// reportLog appends a bitmap. It takes nothing from the log unless the reply
// will be sent.
func (c *conn) reportLog(h featureHead, data []byte) error {
	var r logReport
	if err := r.UnmarshalBinary(data); err != nil {
		return fmt.Errorf("report in %d bytes: %w", len(data), syscall.EINVAL)
	}
	n, shift, err := bitmapSize(r.iova, r.length, r.pageSize, c.limits.maxBitmap)
	if err != nil {
		return err
	}
	if int64(h.argsz) < int64(featureHeadSize+logReportSize+n) {
		return fmt.Errorf("argsz %d for a bitmap of %d bytes: %w", h.argsz, n, syscall.EINVAL)
	}
	l, err := c.srv.dma.logged()
	if err != nil {
		return err
	}
	c.out, _ = r.AppendBinary(c.out)
	start := len(c.out)
	c.out = append(c.out, make([]byte, n)...)
	l.report(r.iova, r.iova+(r.length-1), shift, c.out[start:])
	return nil
}

// unmapDirty is dmaUnmap for a client that wants to know which of the pages that
// it takes away were written to. A request that fails takes none away, unless it
// is for a reader that does not end (EBUSY).
func (c *conn) unmapDirty(r dmaUnmap, data []byte) error {
	var b dirtyBitmap
	if err := b.UnmarshalBinary(data); err != nil || r.flags != dmaUnmapDirtyBitmap {
		return fmt.Errorf("unmap flags %#x with %d bytes: %w", r.flags, len(data), syscall.EINVAL)
	}
	n, shift, err := bitmapSize(r.addr, r.size, b.pageSize, c.limits.maxBitmap)
	const head = dmaUnmapSize + dirtyBitmapSize
	switch {
	case err != nil:
		return err
	case b.size > uint64(c.limits.maxBitmap):
		return fmt.Errorf("bitmap of %d bytes: %w", b.size, syscall.E2BIG)
	case b.size < uint64(n) || uint64(r.argsz) < head+b.size:
		return fmt.Errorf("argsz %d, %d bytes for a bitmap of %d: %w", r.argsz, b.size, n, syscall.EINVAL)
	}
	l, err := c.srv.dma.logged()
	if err != nil {
		return err
	}
	size, err := c.srv.dma.unmap(r.addr, r.size, false)
	if err != nil {
		return err
	}
	c.countUnmap(r, size)
	c.out, _ = dmaUnmap{argsz: uint32(head + b.size), flags: r.flags, addr: r.addr, size: size}.AppendBinary(c.out)
	c.out, _ = b.AppendBinary(c.out)
	start := len(c.out)
	c.out = append(c.out, make([]byte, b.size)...)
	l.report(r.addr, r.addr+(r.size-1), shift, c.out[start:])
	return nil
}
