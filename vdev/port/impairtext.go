// SPDX-License-Identifier: Apache-2.0

package port

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// ParseImpairments reads the description of a wire: "none", or settings with
// commas between:
//
//	loss=1%  corrupt=0.1%  duplicate=1%  reorder=2%   shares of the frames
//	reorderby=2ms  delay=10ms  jitter=5ms             times
//	rate=1M                                           bytes per second; k, M, G
//	seed=7                                            to repeat a run
//
// A setting counts for both directions; "to." in front of it means frames to
// the adapter only, "from." those from it. Later settings win.
func ParseImpairments(s string) (Impairments, error) {
	var im Impairments
	if s == "" || s == "none" {
		return im, nil
	}
	for setting := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(setting, "=")
		if !ok {
			return Impairments{}, fmt.Errorf("port: impair: %q is no setting like loss=1%%", setting)
		}
		if err := im.apply(key, value); err != nil {
			return Impairments{}, fmt.Errorf("port: impair: %q: %w", setting, err)
		}
	}
	for _, r := range []*Rules{&im.ToAdapter, &im.FromAdapter} {
		if err := r.check(); err != nil {
			return Impairments{}, err
		}
	}
	return im, nil
}

func (im *Impairments) apply(key, value string) (err error) {
	if key == "seed" {
		im.Seed, err = strconv.ParseUint(value, 10, 64)
		return err
	}
	both := []*Rules{&im.ToAdapter, &im.FromAdapter}
	if name, ok := strings.CutPrefix(key, "to."); ok {
		key, both = name, both[:1]
	} else if name, ok := strings.CutPrefix(key, "from."); ok {
		key, both = name, both[1:]
	}
	for _, r := range both {
		if err := r.apply(key, value); err != nil {
			return err
		}
	}
	return nil
}

func (r *Rules) apply(key, value string) (err error) {
	switch key {
	case "loss":
		r.Loss, err = parseShare(value)
	case "corrupt":
		r.Corrupt, err = parseShare(value)
	case "duplicate":
		r.Duplicate, err = parseShare(value)
	case "reorder":
		r.Reorder, err = parseShare(value)
	case "reorderby":
		r.ReorderBy, err = time.ParseDuration(value)
	case "delay":
		r.Delay, err = time.ParseDuration(value)
	case "jitter":
		r.Jitter, err = time.ParseDuration(value)
	case "rate":
		r.Rate, err = parseRate(value)
	default:
		err = errors.New("want loss, corrupt, duplicate, reorder, reorderby, delay, jitter, rate or seed")
	}
	return err
}

func parseShare(s string) (float64, error) {
	digits, percent := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(digits, 64)
	if percent {
		v /= 100
	}
	return v, err
}

func parseRate(s string) (int64, error) {
	unit := int64(1)
	for _, u := range []struct {
		suffix string
		n      int64
	}{{"k", 1e3}, {"M", 1e6}, {"G", 1e9}} {
		if digits, ok := strings.CutSuffix(s, u.suffix); ok {
			s, unit = digits, u.n
			break
		}
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err == nil && v > math.MaxInt64/unit {
		err = strconv.ErrRange
	}
	return v * unit, err
}

// String is the description in full, which ParseImpairments reads.
func (im Impairments) String() string {
	var b []string
	for _, d := range []struct {
		name string
		r    *Rules
	}{{"to.", &im.ToAdapter}, {"from.", &im.FromAdapter}} {
		share := func(key string, v float64) {
			if v != 0 {
				b = append(b, d.name+key+"="+strconv.FormatFloat(v, 'g', -1, 64))
			}
		}
		span := func(key string, v time.Duration) {
			if v != 0 {
				b = append(b, d.name+key+"="+v.String())
			}
		}
		share("loss", d.r.Loss)
		share("corrupt", d.r.Corrupt)
		share("duplicate", d.r.Duplicate)
		share("reorder", d.r.Reorder)
		span("reorderby", d.r.ReorderBy)
		span("delay", d.r.Delay)
		span("jitter", d.r.Jitter)
		if d.r.Rate != 0 {
			b = append(b, d.name+"rate="+strconv.FormatInt(d.r.Rate, 10))
		}
	}
	if len(b) == 0 {
		return "none"
	}
	if im.Seed != 0 {
		b = append(b, "seed="+strconv.FormatUint(im.Seed, 10))
	}
	return strings.Join(b, ",")
}
