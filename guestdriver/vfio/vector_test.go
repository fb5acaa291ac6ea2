// SPDX-License-Identifier: Apache-2.0

package vfio

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestVector has a wait end with a signal, before it or meanwhile, of several signals
// once, and with the file.
func TestVector(t *testing.T) {
	v, fd, err := newVector(3)
	if err != nil {
		t.Fatal(err)
	}
	defer v.file.Close() //nolint:errcheck // it may be closed
	signal := func() {
		t.Helper()
		if _, err := unix.Write(int(fd), []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	wait := func() { done <- v.wait() }
	ended := func() error {
		t.Helper()
		select {
		case err := <-done:
			return err
		case <-time.After(time.Minute):
			t.Fatal("the wait does not end")
			return nil
		}
	}
	for i := range 100 {
		signal()
		signal()
		go wait()
		if err := ended(); err != nil {
			t.Fatal(err)
		}
		go wait()
		if i%2 == 0 {
			if got := readCount(uintptr(fd)); got != unix.EAGAIN {
				t.Fatalf("signals were left: %v", got)
			}
		}
		signal()
		if err := ended(); err != nil {
			t.Fatal(err)
		}
	}
	go wait()
	if err := v.file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ended(); err == nil {
		t.Error("a wait goes on after the end")
	}
}
