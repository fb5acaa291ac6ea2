// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"toebox/images/rig"
	"toebox/vdev/port"
)

// FaultCmd are faults on purpose.
type FaultCmd struct {
	Net FaultNetCmd `cmd:"" help:"Make the adapter's wire bad, or good again; without rules, say how bad it is."`
}

// FaultNetCmd sets how bad the wire is, also for firmware that is loaded later.
type FaultNetCmd struct {
	Adapter `embed:""`
	Rules   string `arg:"" optional:"" help:"none, or [to.|from.]loss=1%,delay=5ms,jitter=T,reorder=P,reorderby=T,duplicate=P,corrupt=P,rate=N,seed=N."`
}

// Run is called by kong.
func (c *FaultNetCmd) Run(a *app) error {
	if _, err := port.ParseImpairments(c.Rules); err != nil {
		return &rig.UsageError{Text: fmt.Sprintf("fault net: %v", err)}
	}
	r, err := rig.Running(a.paths)
	if err != nil {
		return err
	}
	if err := r.Has(c.Adapter.Adapter); err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodGet, "http://device/fault/net", nil)
	if c.Rules != "" {
		req, err = http.NewRequest(http.MethodPut, "http://device/fault/net", strings.NewReader(c.Rules))
	}
	if err != nil {
		return fmt.Errorf("fault net: %w", err)
	}
	resp, err := statsClient(r, c.Adapter.Adapter).Do(req)
	if err != nil {
		return fmt.Errorf("fault net: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStats))
	switch {
	case err != nil:
		return fmt.Errorf("fault net: %w", err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("fault net: the device answered %s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	_, err = a.stdout.Write(body)
	return err
}
