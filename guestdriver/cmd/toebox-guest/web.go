// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"

	"toebox/vdev/abi"
)

// maxBytes bounds GET /bytes/N and GET /sum/N.
const maxBytes = 1 << 30

// inspector is what the tool shows of an adapter.
type inspector interface {
	Counters(ctx context.Context) ([]uint64, error)
	Attribute(ctx context.Context, conn uint64, a abi.Attribute) ([]byte, error)
	SetAttribute(ctx context.Context, conn uint64, a abi.Attribute, value []byte) error
}

// newHandler serves the demonstration pages. proc is where /proc is mounted.
func newHandler(in inspector, proc string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := writePage(r.Context(), w, in, proc); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, ok := size(w, r)
		if !ok {
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		if r.Method == http.MethodHead {
			return
		}
		io.Copy(w, randomBytes(n)) // an error is the client going away
	})
	mux.HandleFunc("GET /sum/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, ok := size(w, r)
		if !ok {
			return
		}
		h := sha256.New()
		io.Copy(h, randomBytes(n))
		fmt.Fprintln(w, sum(h))
	})
	mux.HandleFunc("POST /sum", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintln(w, sum(h), n)
	})
	return mux
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

func size(w http.ResponseWriter, r *http.Request) (int64, bool) {
	n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
	if err != nil || n < 0 || n > maxBytes {
		http.Error(w, fmt.Sprintf("N is a number of bytes from 0 to %d", maxBytes), http.StatusBadRequest)
		return 0, false
	}
	return n, true
}

// randomBytes returns n bytes that are the same at each call.
func randomBytes(n int64) io.Reader {
	var seed [32]byte
	copy(seed[:], "toebox /bytes and /sum")
	return io.LimitReader(rand.NewChaCha8(seed), n)
}

// pageCounters are the counters of the page, in its order.
func pageCounters() []abi.Counter {
	return []abi.Counter{
		abi.CounterConnections, abi.CounterConnectsOK, abi.CounterArrivals,
		abi.CounterBytesReceived, abi.CounterBytesDelivered, abi.CounterBytesSent, abi.CounterBytesAcked,
		abi.CounterRequests, abi.CounterResponses,
		abi.CounterDoorbellsIn, abi.CounterDoorbellsOut, abi.CounterInterrupts,
		abi.CounterSegmentsReceived, abi.CounterSegmentsSent, abi.CounterRetransmits,
	}
}

func writePage(ctx context.Context, w io.Writer, in inspector, proc string) error {
	counters, err := in.Counters(ctx)
	if err != nil {
		return fmt.Errorf("counters of the adapter: %w", err)
	}
	release, err := os.ReadFile(proc + "/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	kernel, err := kernelTCP(proc)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "toebox guest, Linux %s\n\nadapter (its TCP carried this request)\n", strings.TrimSpace(string(release)))
	for _, c := range pageCounters() {
		if int(c) < len(counters) {
			fmt.Fprintf(&b, "  %-20s %d\n", c, counters[c])
		}
	}
	b.WriteString("\nguest kernel's TCP (/proc/net/snmp)\n")
	for _, kv := range kernel {
		fmt.Fprintf(&b, "  %-20s %s\n", kv[0], kv[1])
	}
	_, err = io.WriteString(w, b.String())
	return err
}

// kernelTCP returns names and values of the Tcp lines of /proc/net/snmp.
func kernelTCP(proc string) ([][2]string, error) {
	data, err := os.ReadFile(proc + "/net/snmp")
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = f[1:]
			continue
		}
		var kv [][2]string
		for i, v := range f[1:] {
			if i < len(names) {
				kv = append(kv, [2]string{names[i], v})
			}
		}
		return kv, nil
	}
	return nil, fmt.Errorf("%s/net/snmp: no Tcp lines", proc)
}
