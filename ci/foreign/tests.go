// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"

	"toebox/ci/conformance"
)

// Rungs are those that somebody else's driver runs on.
func Rungs() []string {
	return []string{conformance.RungSocket, conformance.RungVM, conformance.RungUIO}
}

// Tests are the functions of the kit that a program is put through. start makes
// a fresh program on a fresh adapter.
func Tests(start func(context.Context) (*Driver, error)) []*conformance.Test {
	var out []*conformance.Test
	for _, k := range []struct {
		name string
		id   string
		ops  string
		f    func(*run)
	}{
		{"TestCE01_DriverConnect", "CE01", "reset connect close", connect},
		{"TestCE01_DriverRefused", "CE01", "reset connect", refused},
		{"TestCE02_DriverListen", "CE02", "reset listen accept send recv close", listen},
		{"TestCE11_DriverHalfClose", "CE11", "reset connect send recv close", halfClose},
		{"TestCE11_DriverAbort", "CE11", "reset connect send close", abort},
		{"TestIF13_DriverAdapter", "IF13", "reset get", adapter},
		{"TestIF15_DriverEcho", "IF15", "reset connect send recv close", echo},
		{"TestIF10_DriverReset", "IF10", "reset connect send recv close", reset},
		{"TestCE10_DriverCancel", "CE10", "reset cancel connect close", cancel},
		{"TestIF13_DriverStats", "IF13", "reset stats connect close", stats},
		{"TestIF14_DriverSet", "IF14", "reset get set connect close", set},
	} {
		out = append(out, &conformance.Test{
			Name: k.name, IDs: []string{k.id}, Needs: conformance.NeedPeer, Rungs: Rungs(),
			Func: func(t *conformance.T) {
				d, err := start(t.Context())
				if err != nil {
					t.Fatalf("%v", err)
				}
				t.Cleanup(func() {
					if err := d.Close(); err != nil {
						t.Errorf("%v", err)
					}
				})
				for op := range strings.FieldsSeq(k.ops) {
					if !d.Offers(op) {
						t.Skipf("the driver does not offer %q: add it to its first line (DRIVER.md)", op)
					}
				}
				r := &run{T: t, d: d}
				r.do("reset")
				k.f(r)
			},
		})
	}
	return out
}

// run is one function at work.
type run struct {
	*conformance.T
	d *Driver
}

// do does an operation that must succeed.
func (r *run) do(op string, args ...any) []string {
	r.Helper()
	words, err := r.d.Do(r.Context(), op, args...)
	if err != nil {
		r.Fatalf("%s %v: %v", op, args, err)
	}
	return words
}

// id does an operation that answers with the driver's name for something.
func (r *run) id(op string, args ...any) string {
	r.Helper()
	words := r.do(op, args...)
	if len(words) != 1 {
		r.Fatalf("%s %v: answer %q, want one word", op, args, words)
	}
	return words[0]
}

// recv receives n bytes of the stream of seed.
func (r *run) recv(id string, n int, seed uint64) {
	r.Helper()
	p := make([]byte, n)
	conformance.Payload(p, seed, 0)
	sum := sha256.Sum256(p)
	words := r.do("recv", id, n)
	if len(words) != 2 || words[0] != strconv.Itoa(n) || !strings.EqualFold(words[1], hex.EncodeToString(sum[:])) {
		r.Errorf("received %q, want %d bytes with SHA-256 %x", words, n, sum)
	}
}

func (r *run) serve(s conformance.Script) (conformance.Session, string) {
	r.Helper()
	p, err := r.Peer().Serve(r.Context(), s)
	if err != nil {
		r.Fatalf("peer: %v", err)
	}
	r.Cleanup(func() { p.Close() })
	return p, r.id("connect", p.Addr())
}

func (r *run) result(p conformance.Session) conformance.Result {
	r.Helper()
	res, err := p.Result(r.Context())
	if err != nil {
		r.Fatalf("peer: %v", err)
	}
	return res
}

func connect(r *run) {
	p, id := r.serve(conformance.Script{{Op: conformance.OpDiscard}})
	r.do("close", id, "graceful")
	if res := r.result(p); !res.EOF || res.Received != 0 {
		r.Errorf("at the peer: %+v, want an end without data", res)
	}
}

func refused(r *run) {
	a, err := r.Peer().Refused(r.Context())
	if err != nil {
		r.Fatalf("peer: %v", err)
	}
	_, err = r.d.Do(r.Context(), "connect", a)
	if s, ok := errors.AsType[*StatusError](err); !ok || s.Status != 4 { // REFUSED
		r.Errorf("connect to a port where nobody listens: %v, want status 4", err)
	}
}

func listen(r *run) {
	ports, err := r.Peer().Reachable(r.Context(), 1)
	if err != nil {
		r.Fatalf("peer: %v", err)
	}
	l := r.id("listen", ports[0])
	p, err := r.Peer().Dial(r.Context(), ports[0], conformance.Script{
		{Op: conformance.OpSend, N: 1000, Seed: 3}, {Op: conformance.OpDiscard, N: 500}})
	if err != nil {
		r.Fatalf("peer: %v", err)
	}
	r.Cleanup(func() { p.Close() })
	id := r.id("accept", l)
	r.recv(id, 1000, 3)
	r.do("send", id, 500, 4)
	if res := r.result(p); res.Received != 500 || res.Err != "" {
		r.Errorf("at the peer: %+v, want 500 bytes", res)
	}
	r.do("close", id, "abort")
}

func halfClose(r *run) {
	p, id := r.serve(conformance.Script{{Op: conformance.OpDiscard}, {Op: conformance.OpSend, N: 50_000, Seed: 8}})
	r.do("send", id, 3000, 7)
	r.do("close", id, "half")
	r.recv(id, 50_000, 8)
	if words := r.do("recv", id, 10); len(words) == 0 || words[0] != "0" {
		r.Errorf("behind the end of the stream: %q, want 0 bytes", words)
	}
	if res := r.result(p); !res.EOF || res.Received != 3000 {
		r.Errorf("at the peer: %+v, want 3000 bytes and the end", res)
	}
}

func abort(r *run) {
	p, id := r.serve(conformance.Script{{Op: conformance.OpDiscard, N: 100}, {Op: conformance.OpDiscard}})
	r.do("send", id, 100, 1)
	r.do("close", id, "abort")
	if res := r.result(p); res.EOF || !strings.Contains(res.Err, "reset") {
		r.Errorf("at the peer: %+v, want a reset", res)
	}
}

func adapter(r *run) {
	mtu := r.id("get", 0, 0x0106, 8) // MTU
	b, err := hex.DecodeString(mtu)
	if err != nil || len(b) != 8 || b[2] != 0 || int(b[0])|int(b[1])<<8 < 576 {
		r.Errorf("MTU is %q (%v), want 8 bytes, little-endian, of 576 at least", mtu, err)
	}
	_, err = r.d.Do(r.Context(), "get", 0, 0x7abc, 8)
	if s, ok := errors.AsType[*StatusError](err); !ok || s.Status != 48 { // UNKNOWN_ATTRIBUTE
		r.Errorf("get of an unknown attribute: %v, want status 48", err)
	}
}

func echo(r *run) {
	const n = 200_000
	p, id := r.serve(conformance.Script{{Op: conformance.OpDiscard, N: n}, {Op: conformance.OpSend, N: n, Seed: 6}, {Op: conformance.OpDiscard}})
	r.do("send", id, n, 5)
	r.recv(id, n, 6)
	r.do("close", id, "graceful")
	want := make([]byte, n)
	conformance.Payload(want, 5, 0)
	sum := sha256.Sum256(want)
	if res := r.result(p); res.Sum != hex.EncodeToString(sum[:]) || res.Received != n {
		r.Errorf("at the peer: %+v, want %d bytes with SHA-256 %x", res, n, sum)
	}
}

// reset: a reset ends what was, and the adapter works as new.
func reset(r *run) {
	r.serve(conformance.Script{{Op: conformance.OpDiscard}})
	r.do("reset")
	echo(r)
}

// cancel: a connect that nobody answers ends by its cancellation, and nothing
// else does.
func cancel(r *run) {
	a, err := r.Peer().Hang(r.Context())
	if err != nil {
		r.Fatalf("peer: %v", err)
	}
	if s := r.id("cancel", a); s != "2" { // CANCELLED
		r.Errorf("the cancelled connect ended with status %s, want 2", s)
	}
	connect(r)
}

// stats: counters of the adapter move with what it does.
func stats(r *run) {
	count := func(index int) uint64 {
		r.Helper()
		n, err := strconv.ParseUint(r.id("stats", index), 10, 64)
		if err != nil {
			r.Fatalf("counter %d: %v", index, err)
		}
		return n
	}
	const connectsOK, frames = 19, 51
	ok, sent := count(connectsOK), count(frames)
	connect(r)
	if now := count(connectsOK); now != ok+1 {
		r.Errorf("connects_ok is %d after a connect, %d before", now, ok)
	}
	if now := count(frames); now <= sent {
		r.Errorf("frames_sent is %d after a connect, %d before", now, sent)
	}
}

// set: attributes of a connection and of the adapter take values, and say why
// they do not.
func set(r *run) {
	p, id := r.serve(conformance.Script{{Op: conformance.OpDiscard}})
	for _, c := range []struct {
		id        any
		attribute int
		value     string
		status    int
	}{
		{id, 0x0212, "3700000000000000", 0},  // TTL
		{0, 0x010d, "4d00000000000000", 0},   // MAX_CONNECTIONS
		{id, 0x0203, "0100000000000000", 49}, // STATE: READ_ONLY
		{id, 0x0212, "ffff000000000000", 52}, // BAD_VALUE
		{id, 0x0212, "37", 38},               // BAD_LENGTH
		{0, 0x7abc, "0000000000000000", 48},  // UNKNOWN_ATTRIBUTE
	} {
		_, err := r.d.Do(r.Context(), "set", c.id, c.attribute, c.value)
		s, failed := errors.AsType[*StatusError](err)
		if err != nil && !failed || failed != (c.status != 0) || failed && s.Status != c.status {
			r.Errorf("set of attribute %#x to %s: %v, want status %d", c.attribute, c.value, err, c.status)
		}
		if c.status != 0 {
			continue
		}
		if got := r.id("get", c.id, c.attribute, 8); !strings.EqualFold(got, c.value) {
			r.Errorf("attribute %#x is %s after a set of %s", c.attribute, got, c.value)
		}
	}
	r.do("close", id, "graceful")
	r.result(p)
}
