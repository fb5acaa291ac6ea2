// SPDX-License-Identifier: Apache-2.0

package enginetest

import "toebox/firmware/engine"

var _ engine.Tracker = (*Endpoint)(nil)

// SetFlow sets what Flow tells beside state, addresses and counts; Sent is
// how many bytes were sent at most.
func (p *Endpoint) SetFlow(f engine.Flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flow = f
}

// Flow implements [engine.Tracker].
func (p *Endpoint) Flow() (engine.Flow, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.liveLocked(); err != nil {
		return engine.Flow{}, engine.ErrNotConnected
	}
	f, c := p.flow, &p.counts
	f.State, f.Local, f.Remote = p.state, p.local, p.remote
	f.Queued, f.Acked, f.Received, f.Delivered = c.Queued, c.Acked, c.Received, c.Delivered
	f.Sent = max(min(f.Sent, f.Queued), f.Acked)
	return f, nil
}
