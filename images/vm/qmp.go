// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

const qmpPatience = 20 * time.Second

// A monitor is QEMU's QMP socket. The library has no contexts, and blocks for ever
// on an event nobody takes: each call runs beside a deadline, and events are taken
// from start to end.
type monitor struct {
	mon *qmp.SocketMonitor
}

// dialMonitor connects to a socket that exists; event gets what QEMU tells.
func dialMonitor(ctx context.Context, path string, event func(qmp.Event)) (*monitor, error) {
	mon, err := qmp.NewSocketMonitor("unix", path, qmpPatience)
	if err != nil {
		return nil, fmt.Errorf("vm: qmp: %w", err)
	}
	m := &monitor{mon: mon}
	if err := bounded(ctx, "connect", mon.Connect); err != nil {
		go mon.Disconnect() //nolint:errcheck // may block; the process ends with us
		return nil, err
	}
	events, err := mon.Events(ctx)
	if err != nil {
		return nil, fmt.Errorf("vm: qmp: %w", err)
	}
	go func() {
		for e := range events {
			event(e)
		}
	}()
	return m, nil
}

// bounded runs a call of the library that knows no deadline.
func bounded(ctx context.Context, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, qmpPatience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("vm: qmp: %s: %w", what, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("vm: qmp: %s: %w", what, ctx.Err())
	}
}

// Execute runs a command and decodes its answer into out, if that is not nil.
func (m *monitor) Execute(ctx context.Context, command string, args, out any) error {
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return fmt.Errorf("vm: qmp: %w", err)
	}
	var answer []byte
	if err := bounded(ctx, command, func() (err error) { answer, err = m.mon.Run(b); return err }); err != nil {
		return err
	}
	if out == nil {
		return nil
	}
	var r struct {
		Return json.RawMessage `json:"return"`
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return fmt.Errorf("vm: qmp: %s: %w", command, err)
	}
	if err := json.Unmarshal(r.Return, out); err != nil {
		return fmt.Errorf("vm: qmp: %s: %w", command, err)
	}
	return nil
}
