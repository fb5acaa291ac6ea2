// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// recoverPeriod is the pause between questions whether firmware is in use yet.
const recoverPeriod = 2 * time.Millisecond

// served waits until the driver uses the adapter of the generation and the guest's
// server has answered through it. It returns when the first byte of the answer came;
// zero: none did, of which the guest may be the cause.
func (l *fwLoader) served(ctx context.Context, generation uint32, begin time.Time) (time.Time, error) {
	wait, cancel := l.bound(ctx, l.patience, fmt.Errorf("no driver has come back within %v", l.patience))
	defer cancel()
	var byteAt time.Time
	var silent error
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if l.run.Port != 0 && l.adapter == 0 { // else nothing leads from here to the guest
			byteAt, silent = firstByte(wait, l.run.Port)
		}
	}()
	recovered, err := l.recovered(wait, generation)
	if err != nil {
		cancel() // then nobody answers
	} else {
		l.say("driver back after %s: its first request is answered", seconds(recovered.Sub(begin)))
	}
	<-asked
	switch {
	case ctx.Err() != nil:
		return time.Time{}, context.Cause(ctx)
	case err != nil:
		return time.Time{}, &lateError{err}
	case silent != nil:
		l.say("no HTTP answer at port %d within %v: %v", l.run.Port, l.patience, silent)
		return time.Time{}, nil
	}
	return byteAt, nil
}

// recovered waits until the adapter of the generation has answered a request.
func (l *fwLoader) recovered(ctx context.Context, generation uint32) (time.Time, error) {
	for {
		s, err := l.stats(ctx)
		switch {
		case err == nil && s.Generation != generation:
			return time.Time{}, fmt.Errorf("generation %d did not last: see what the run says of it", generation)
		case err == nil && s.Counters["responses"] > 0:
			return time.Now(), nil
		}
		if err := pause(ctx, recoverPeriod); err != nil {
			return time.Time{}, err
		}
	}
}

// fwStats is what is looked at of the device's statistics.
type fwStats struct {
	Generation uint32            `json:"generation"`
	Counters   map[string]uint64 `json:"counters"`
}

func (l *fwLoader) stats(ctx context.Context) (s fwStats, err error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, statsURL, nil)
	if err != nil {
		return s, err
	}
	resp, err := l.client.Do(q)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	return s, json.NewDecoder(io.LimitReader(resp.Body, maxStats)).Decode(&s)
}

// firstByte asks the guest's HTTP server, at a port of the host's, until there is an
// answer, and returns when the first byte of that came.
func firstByte(ctx context.Context, port int) (time.Time, error) {
	for {
		at, err := askByte(ctx, port)
		if err == nil || ctx.Err() != nil {
			return at, err
		}
		if pause(ctx, recoverPeriod) != nil {
			return at, err
		}
	}
}

func askByte(ctx context.Context, port int) (time.Time, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return time.Time{}, err
	}
	defer conn.Close()                                                           //nolint:errcheck // a byte is enough
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // the read tells
	defer stop()
	if _, err := io.WriteString(conn, "HEAD / HTTP/1.0\r\nHost: guest\r\n\r\n"); err != nil {
		return time.Time{}, err
	}
	_, err = conn.Read(make([]byte, 1))
	return time.Now(), err
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
