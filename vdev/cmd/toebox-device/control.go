// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"toebox/vdev/device"
)

// Limits of the control socket.
const (
	controlTimeout     = 10 * time.Second // to read a request
	controlIdle        = time.Minute
	controlHeaderBytes = 16 << 10
)

// control serves statistics.
type control struct {
	server *http.Server
	done   chan error
}

// serveControl serves on l, which it owns. Pprof takes as long as it is asked to, so that
// answers have no time limit; the socket is the owner's alone.
func serveControl(l net.Listener, d *device.Device, profile bool, log *slog.Logger) *control {
	c := &control{done: make(chan error, 1), server: &http.Server{
		Handler: controlHandler(d, profile), ReadTimeout: controlTimeout, IdleTimeout: controlIdle,
		MaxHeaderBytes: controlHeaderBytes, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}}
	go func() { c.done <- c.server.Serve(l) }()
	return c
}

func controlHandler(d *device.Device, profile bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(d.Stats()) // the client has gone
	})
	if profile {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func (c *control) close() error {
	err := c.server.Close()
	if serr := <-c.done; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}
