// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"net"
	"sync"

	"toebox/images/control"
)

// maxClients bounds how many other processes talk to an instance at once.
const maxClients = 64

// A relay passes what other toebox processes ask on to the guest.
type relay struct {
	l  *net.UnixListener
	to *control.Session

	mu      sync.Mutex
	closed  bool
	clients map[*control.Session]bool
}

func newRelay(l *net.UnixListener, to *control.Session) *relay {
	r := &relay{l: l, to: to, clients: map[*control.Session]bool{}}
	go r.accept()
	return r
}

func (r *relay) accept() {
	for {
		conn, err := r.l.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		if r.closed || len(r.clients) == maxClients {
			r.mu.Unlock()
			conn.Close() //nolint:errcheck // refused
			continue
		}
		s := control.New(conn, control.Config{
			Role: control.Guest,
			Handler: func(ctx context.Context, st *control.Stream) control.Result {
				return control.Relay(ctx, st, r.to)
			},
		})
		r.clients[s] = true
		r.mu.Unlock()
		go func() {
			<-s.Done()
			r.mu.Lock()
			delete(r.clients, s)
			r.mu.Unlock()
		}()
	}
}

func (r *relay) close() {
	r.l.Close() //nolint:errcheck // ends accept and removes the socket
	r.mu.Lock()
	r.closed = true
	var all []*control.Session
	for s := range r.clients {
		all = append(all, s)
	}
	r.mu.Unlock()
	for _, s := range all {
		s.Close() //nolint:errcheck // idempotent
	}
}
