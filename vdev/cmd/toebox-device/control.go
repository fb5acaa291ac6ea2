// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"toebox/vdev/device"
	"toebox/vdev/port"
)

// Limits of the control socket.
const (
	controlTimeout     = 10 * time.Second // to read a request
	controlIdle        = time.Minute
	controlHeaderBytes = 16 << 10
	maxRules           = 4 << 10 // bytes of a text of impairments
)

// control serves statistics and takes orders for faults.
type control struct {
	server *http.Server
	done   chan error
}

// serveControl serves on l, which it owns. Pprof takes as long as it is asked to, so that
// answers have no time limit; the socket is the owner's alone.
func serveControl(l net.Listener, d *device.Device, faults string, profile bool, log *slog.Logger) *control {
	c := &control{done: make(chan error, 1), server: &http.Server{
		Handler: controlHandler(d, faults, profile), ReadTimeout: controlTimeout, IdleTimeout: controlIdle,
		MaxHeaderBytes: controlHeaderBytes, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}}
	go func() { c.done <- c.server.Serve(l) }()
	return c
}

func controlHandler(d *device.Device, faults string, profile bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(d.Stats()) // the client has gone
	})
	mux.HandleFunc("GET /fault/net", func(w http.ResponseWriter, _ *http.Request) { answerWire(w, d) })
	mux.HandleFunc("PUT /fault/net", func(w http.ResponseWriter, r *http.Request) {
		rules, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRules))
		var im port.Impairments
		if err == nil {
			im, err = port.ParseImpairments(strings.TrimSpace(string(rules)))
		}
		if err == nil {
			err = d.Impair(im)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if err := writeFaults(faults, d); err != nil {
			http.Error(w, "the wire is so, but not for the next process: "+err.Error(), http.StatusInternalServerError)
			return
		}
		answerWire(w, d)
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

// readFaults replaces the rules of the wire by those that a process before this
// one was told, if any was.
func readFaults(path string, im *port.Impairments) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRules))
	if err != nil {
		return err
	}
	*im, err = port.ParseImpairments(string(b))
	return err
}

// writeFaults keeps the rules of the wire for the next process.
func writeFaults(path string, d *device.Device) error {
	if path == "" {
		return nil
	}
	part := path + ".part"
	if err := os.WriteFile(part, []byte(d.Wire().Rules), 0o600); err != nil {
		return err
	}
	return os.Rename(part, path)
}

// answerWire says how bad the wire is and what it did.
func answerWire(w http.ResponseWriter, d *device.Device) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(d.Wire()) // the client has gone
}

func (c *control) close() error {
	err := c.server.Close()
	if serr := <-c.done; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}
