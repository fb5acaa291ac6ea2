// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/json"
	"fmt"
	"testing"

	"toebox/vfio-user/keeper"
)

// TestStoppedTerminal: firmware is loaded, and deaths are noticed, while nobody reads
// what is said of it; what was said then comes later, but for what is too much.
func TestStoppedTerminal(t *testing.T) {
	k, its, _ := fakeKeeper(t)
	stopped, reached := make(chan struct{}), make(chan struct{}, 1)
	var said []string
	l := newLines(func(format string, args ...any) {
		select {
		case reached <- struct{}{}:
		default:
		}
		<-stopped
		said = append(said, fmt.Sprintf(format, args...))
	})
	k.mu.Lock()
	k.say = l.add
	k.mu.Unlock()
	orders, answers := json.NewDecoder(its), json.NewEncoder(its)
	answers.Encode(keeper.Report{Kind: "hung", Error: "first"})
	wait(t, "the first line", reached)
	const more = maxLines + 7
	for n := range more {
		answers.Encode(keeper.Report{Kind: "hung", Error: fmt.Sprint("no ", n)})
	}
	done := make(chan error, 1)
	go func() {
		_, err := k.replace(t.Context(), "/r/firmware-1/p")
		done <- err
	}()
	var o keeper.Order
	if err := orders.Decode(&o); err != nil {
		t.Fatal(err)
	}
	answers.Encode(keeper.Report{Kind: keeper.KindReplaced, Generation: 2})
	if err := wait(t, "the answer", done); err != nil {
		t.Error(err)
	}
	close(stopped)
	l.close()
	wait(t, "the end", l.done)
	l.add("after the end")
	if len(said) != 1+maxLines+1 || said[len(said)-1] != "adapter: 7 more lines were lost" {
		t.Errorf("%d lines, the last %q", len(said), said[max(0, len(said)-1):])
	}
	l.close()
}
