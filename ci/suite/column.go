// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"toebox/ci/conformance"
	"toebox/ci/netns"
	"toebox/ci/runner"
)

// withKernel is behind the name of a rung in that of a column.
const withKernel = "+" + conformance.PeerKernel

// rungs are in the order of the ladder.
func rungs() []string {
	return []string{conformance.RungInproc, conformance.RungSocket, conformance.RungQTest, conformance.RungVM, conformance.RungUIO}
}

// Columns returns what runs by default: each rung with nat, and with the Linux
// kernel as the peer those that differ in how the adapter's network is served:
// within this process, by the protocol, and to a guest.
func Columns() []string {
	return append(rungs(), conformance.RungInproc+withKernel, conformance.RungSocket+withKernel, conformance.RungVM+withKernel)
}

// columnName is the column of a result.
func columnName(r *runner.Result) string { return r.Package[strings.LastIndexByte(r.Package, '/')+1:] }

// split returns the rung and the peer of a column.
func split(column string) (rung, peer string) {
	if r, ok := strings.CutSuffix(column, withKernel); ok {
		return r, conformance.PeerKernel
	}
	return column, conformance.PeerNAT
}

// choose makes the columns of those that were named, none perhaps, and the peer.
func choose(columns []string, peer string) ([]string, error) {
	named := len(columns) > 0
	if !named {
		columns = Columns()
	}
	var out []string
	for _, c := range columns {
		rung, with := split(c)
		switch {
		case !slices.Contains(rungs(), rung):
			return nil, fmt.Errorf("bus %q: want one of %s, and %s behind it for the Linux kernel as the peer", c, strings.Join(rungs(), ", "), withKernel)
		case peer == "" || peer == with:
		case !named:
			continue
		case peer == conformance.PeerKernel:
			c += withKernel
		case peer == conformance.PeerNAT:
			return nil, fmt.Errorf("bus %q is not for the peer %s", c, peer)
		}
		if slices.Contains(out, c) {
			return nil, fmt.Errorf("bus %s is named twice: to repeat functions, give a count", c)
		}
		out = append(out, c)
	}
	if peer != "" && peer != conformance.PeerNAT && peer != conformance.PeerKernel {
		return nil, fmt.Errorf("peer %q: want %s or %s", peer, conformance.PeerNAT, conformance.PeerKernel)
	}
	return out, nil
}

// Kernel says whether a run would make networks of the kernel's.
func (o *Options) Kernel() bool {
	s := &suite{Options: *o}
	return !o.List && s.check() == nil && slices.ContainsFunc(s.Buses, func(b string) bool { return strings.HasSuffix(b, withKernel) })
}

// networkTest stands for all functions of a column that has no network.
const networkTest = "Network"

// network says whether a column's network can be made; one that is for others than
// this user is skipped.
func (s *suite) network(column string) (ok bool, err error) {
	if _, peer := split(column); peer != conformance.PeerKernel {
		return true, nil
	}
	try := s.Network
	if try == nil {
		try = netns.Try
	}
	if err = try(); !errors.Is(err, netns.ErrPrivilege) {
		return err == nil, err
	}
	e := runner.Event{Package: s.options(column).Package, Test: networkTest}
	for _, e.Action = range []string{runner.ActionRun, runner.ActionOutput, runner.ActionSkip} {
		e.Time, e.Output, e.Elapsed = time.Now(), "", nil
		switch e.Action {
		case runner.ActionOutput:
			e.Output = err.Error() + "\n"
		case runner.ActionSkip:
			e.Elapsed = new(float64)
		}
		s.take(e)
	}
	return false, nil
}

// excused counts the skips that are nobody's fault.
func (s *suite) excused() (n int) {
	for i := range s.collector.Results {
		if r := &s.collector.Results[i]; r.Name == networkTest && r.Action == runner.ActionSkip {
			n++
		}
	}
	return n
}
