// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"toebox/ci/conformance"
	"toebox/ci/peer"
)

// Exec runs a program in a guest and returns its exit status when it has ended.
type Exec func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (status int, err error)

// Guest is a run of the kit in a guest.
type Guest struct {
	Exec Exec
	// Driver is vfio or uio.
	Driver string
	// Program is the path of toebox-conformance in the guest.
	Program string
	// Peer is the adapter's other side, which the guest reaches through the
	// program's standard streams.
	Peer conformance.Peer
	// Options as for Run; Tests, Env and Grace are not used.
	Options
	Scale float64
	// Stderr gets what the program says beside its events.
	Stderr io.Writer
}

// Run runs the kit in the guest. The error says that the guest or the program
// did not get to the end; the summary counts what it had not run as failed.
func (g *Guest) Run(ctx context.Context) (Summary, error) {
	args := []string{
		g.Program, "-driver", g.Driver, "-seed", strconv.FormatUint(g.Seed, 10), "-count", strconv.Itoa(max(g.Count, 1)),
		"-shard", strconv.Itoa(max(g.Shard, 1)), "-shards", strconv.Itoa(max(g.Shards, 1)),
		"-scale", strconv.FormatFloat(g.Scale, 'g', -1, 64),
	}
	if g.Options.Peer != "" {
		args = append(args, "-network", g.Options.Peer)
	}
	if g.Options.Run != nil {
		args = append(args, "-run", g.Options.Run.String())
	}
	var names []string
	for _, t := range Select(&g.Options) {
		names = append(names, t.Name)
	}

	// out carries the program's lines, which are calls to the peer or events;
	// in carries the peer's answers.
	outR, outW := io.Pipe()
	inR, inW := io.Pipe()
	callsR, callsW := io.Pipe()
	eventsR, eventsW := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer callsW.Close()
		defer eventsW.Close()
		demux(outR, callsW, eventsW)
		// What comes after a line too long is of no use, but must not block
		// the guest.
		_, _ = io.Copy(io.Discard, outR)
	})
	wg.Go(func() {
		// It ends with callsR; its error is that the guest spoke nonsense.
		if err := peer.Serve(ctx, struct {
			io.Reader
			io.Writer
		}{callsR, inW}, g.Peer); err != nil {
			callsR.CloseWithError(err)
		}
		inW.Close()
	})
	var status int
	var execErr error
	wg.Go(func() {
		status, execErr = g.Exec(ctx, args, inR, outW, g.Stderr)
		outW.Close()
		inR.Close()
	})
	var c Collector
	sink := Tee(c.Sink(), g.Sink)
	began := time.Now()
	sink(Event{Time: began, Action: ActionStart, Package: g.Package})
	notRun, followErr := Follow(eventsR, g.Package, names, sink)
	_, _ = io.Copy(io.Discard, eventsR)
	wg.Wait()

	sum := c.Summary()
	result := ActionPass
	if sum.Failed > 0 {
		result = ActionFail
	}
	sink(Event{Time: time.Now(), Action: result, Package: g.Package, Elapsed: seconds(time.Since(began))})
	switch {
	case execErr != nil:
		return sum, fmt.Errorf("runner: guest: %w", execErr)
	case followErr != nil:
		return sum, fmt.Errorf("runner: guest: events: %w", followErr)
	case status != ExitOK && status != ExitFailed && status != ExitSkipped:
		return sum, fmt.Errorf("runner: guest: %s ended with status %d", g.Program, status)
	case notRun > 0:
		return sum, errors.New("runner: guest: the program ended before it had run all")
	}
	return sum, nil
}

// demux sends each line where it belongs, until the stream ends.
func demux(r io.Reader, calls, events io.Writer) {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), maxLine)
	for in.Scan() {
		w := events
		if peer.IsCall(in.Bytes()) {
			w = calls
		}
		line := append(append([]byte(nil), in.Bytes()...), '\n')
		if _, err := w.Write(line); err != nil && w == events {
			return
		}
	}
}
