// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

func TestMain(m *testing.M) { vfiousertest.Main(m) }

const patience = 60 * time.Second

// start runs the command until the returned functions are called: end ends it,
// status waits for it.
func start(t *testing.T, args ...string) (end func(), status func() int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	done := make(chan int, 1)
	var stderr bytes.Buffer
	go func() { done <- run(ctx, args, &stderr) }()
	return cancel, func() int {
		s := <-done
		if s != exitOK {
			t.Logf("stderr: %s", &stderr)
		}
		return s
	}
}

// dial connects as soon as it can, and looks whether that is the device.
func dial(t *testing.T, path string) *vfiouser.Client {
	t.Helper()
	c := vfiousertest.Dial(t, path)
	id := make([]byte, 4)
	if err := c.ReadRegion(vfiouser.RegionConfig, 0, id); err != nil || !bytes.Equal(id, []byte{0xad, 0xde, 0xef, 0xbe}) {
		t.Errorf("identification %x, %v", id, err)
	}
	return c
}

// TestSocketPath serves one client after another until told to end.
func TestSocketPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	end, status := start(t, "--socket-path="+path)
	dial(t, path).Close()
	dial(t, path).Close()
	end()
	if s := status(); s != exitOK {
		t.Errorf("status %d", s)
	}
}

// TestPath is how the client sample starts the server that it migrates to: one
// client, and out.
func TestPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	_, status := start(t, "-v", path)
	dial(t, path).Close()
	if s := status(); s != exitOK {
		t.Errorf("status %d", s)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
	// Without a client it ends when told to.
	end, status := start(t, path)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if _, err := os.Lstat(path); err == nil {
			break
		}
	}
	end()
	if s := status(); s != exitOK {
		t.Errorf("status %d", s)
	}
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args string
		want int
		say  string
	}{
		{"", exitUsage, "--socket-path"},
		{"--socket-path=a --fd=3", exitUsage, "one of"},
		{"--socket-path=a b", exitUsage, "one of"},
		{"--fd=3 b", exitUsage, "one of"},
		{"a b", exitUsage, "one of"},
		{"--fd=x", exitUsage, "fd"},
		{"--help", exitOK, "socket-path"},
		{"--fd=1000000", exitFailed, "bad file descriptor"},
		{"--socket-path=/nonexistent/s", exitFailed, "no such file"},
		{"/nonexistent/s", exitFailed, "no such file"},
	} {
		var stderr bytes.Buffer
		if got := run(t.Context(), strings.Fields(tt.args), &stderr); got != tt.want || !strings.Contains(stderr.String(), tt.say) {
			t.Errorf("%q: status %d, want %d; said %s", tt.args, got, tt.want, &stderr)
		}
	}
}
