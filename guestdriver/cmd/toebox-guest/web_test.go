// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"toebox/vdev/abi"
)

// fakeInspector is an adapter that answers from maps.
type fakeInspector struct {
	counters []uint64
	attrs    map[abi.Attribute][]byte
	err      error
}

func (f *fakeInspector) Counters(context.Context) ([]uint64, error) { return f.counters, f.err }

func (f *fakeInspector) Attribute(_ context.Context, _ uint64, a abi.Attribute) ([]byte, error) {
	if f.err != nil {
		return nil, f.err
	}
	if v, ok := f.attrs[a]; ok {
		return v, nil
	}
	return nil, abi.StatusNotSupported
}

func (f *fakeInspector) SetAttribute(_ context.Context, _ uint64, a abi.Attribute, v []byte) error {
	f.attrs[a] = v
	return f.err
}

func fakeProc(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"sys/kernel/osrelease": "6.12.0-test\n",
		"net/snmp": "Ip: Forwarding DefaultTTL\nIp: 1 64\n" +
			"Tcp: ActiveOpens InSegs\nTcp: 7 11\n",
	}
	for name, data := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func get(t *testing.T, h http.Handler, method, path string, body io.Reader) (int, []byte) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, body))
	return w.Code, w.Body.Bytes()
}

func TestPageShowsBothStacks(t *testing.T) {
	in := &fakeInspector{counters: make([]uint64, abi.NumCounters)}
	in.counters[22] = 4242 // arrivals, SPEC.md §13
	code, body := get(t, newHandler(in, fakeProc(t)), "GET", "/", nil)
	if code != 200 {
		t.Fatalf("status %d: %s", code, body)
	}
	for _, want := range []string{"6.12.0-test", "arrivals", "4242", "ActiveOpens", "InSegs", "11"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("page lacks %q:\n%s", want, body)
		}
	}
	in.err = errors.New("adapter is gone")
	if code, _ := get(t, newHandler(in, fakeProc(t)), "GET", "/", nil); code != 500 {
		t.Errorf("status %d without an adapter, want 500", code)
	}
}

func TestBytesAndSumAgree(t *testing.T) {
	h := newHandler(&fakeInspector{}, "")
	for _, n := range []string{"0", "1", "100003"} {
		code, body := get(t, h, "GET", "/bytes/"+n, nil)
		if code != 200 {
			t.Fatalf("bytes/%s: status %d", n, code)
		}
		want := sha256.Sum256(body)
		_, got := get(t, h, "GET", "/sum/"+n, nil)
		if strings.TrimSpace(string(got)) != hex.EncodeToString(want[:]) {
			t.Errorf("sum/%s = %s, want %x", n, got, want)
		}
	}
	_, a := get(t, h, "GET", "/bytes/64", nil)
	if bytes.Count(a, a[:1]) == len(a) {
		t.Errorf("bytes are all %#x", a[0])
	}
	for _, n := range []string{"-1", "1073741825", "x", "9999999999999999999999"} {
		if code, _ := get(t, h, "GET", "/bytes/"+n, nil); code != 400 {
			t.Errorf("bytes/%s: status %d, want 400", n, code)
		}
	}
}

func TestPostSum(t *testing.T) {
	code, body := get(t, newHandler(&fakeInspector{}, ""), "POST", "/sum", strings.NewReader("abc"))
	const want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad 3\n" // FIPS 180-4
	if code != 200 || string(body) != want {
		t.Errorf("POST /sum = %d %q, want %q", code, body, want)
	}
}
