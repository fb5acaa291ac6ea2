// SPDX-License-Identifier: Apache-2.0

package guestdriver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"testing"
	"time"

	"toebox/guestdriver"
	"toebox/guestdriver/guestdrivertest"
	"toebox/vdev/abi"
)

var choicePolicy = guestdriver.ChoicePolicy{
	Choice: guestdriver.ChooseHistory, Wait: 3 * time.Millisecond, Count: 20, Span: time.Second, Threshold: 75, Reduce: true,
	Match: guestdriver.PoolMatch{Best: true, Node: 7, NodeWeight: 2, SpeedWeight: 200},
}

// TestChoicePolicy: the attributes that a policy of choice is made of, of a connection,
// of the adapter, and after a reset of it; what is refused, and what is none.
func TestChoicePolicy(t *testing.T) {
	ctx := context.Background()
	a, f := open(t, guestdriver.Options{})
	c, far := pair(t, a)
	defer c.Close()
	defer far.Close()
	usual := guestdriver.ChoicePolicy{Wait: 5 * time.Millisecond, Count: 16, Threshold: 50}
	if p, err := c.ChoicePolicy(); err != nil || p != usual {
		t.Errorf("by default %+v, %v", p, err)
	}
	seen := controls(f)
	if err := c.SetChoicePolicy(choicePolicy); err != nil {
		t.Fatal(err)
	}
	if got, want := <-seen, []byte{
		0x32, 0x82, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, // set BUFFER_POLICY, 8 bytes: history
		0x33, 0x82, 0, 0, 8, 0, 0, 0, 0xc0, 0xc6, 0x2d, 0, 0, 0, 0, 0, // BUFFER_WAIT, ns
		0x34, 0x82, 0, 0, 8, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, // HISTORY_COUNT
		0x35, 0x82, 0, 0, 8, 0, 0, 0, 0, 0xca, 0x9a, 0x3b, 0, 0, 0, 0, // HISTORY_TIME, ns
		0x36, 0x82, 0, 0, 8, 0, 0, 0, 75, 0, 0, 0, 0, 0, 0, 0, // HISTORY_THRESHOLD
		0x37, 0x82, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // HISTORY_MODE
		0x38, 0x82, 0, 0, 8, 0, 0, 0, 2, 200, 1, 7, 0, 0, 0, 0, // POOL_WEIGHTS: weights of node and speed, best match, node
	}; !bytes.Equal(got, want) {
		t.Errorf("set by\n% x, want\n% x", got, want)
	}
	f.Intercept(nil)
	if p, err := c.ChoicePolicy(); err != nil || p != choicePolicy {
		t.Errorf("%+v, %v", p, err)
	}

	// Refused by the adapter, or no number of its.
	p := choicePolicy
	p.Threshold = 101
	if err := c.SetChoicePolicy(p); !errors.Is(err, abi.StatusBadValue) || !strings.Contains(err.Error(), "value 101: guestdriver: set attribute HISTORY_THRESHOLD 0x0236") {
		t.Errorf("a threshold of 101%%: %v", err)
	}
	for name, change := range map[string]func(p *guestdriver.ChoicePolicy){
		"value -1: guestdriver: set attribute POOL_WEIGHTS":  func(p *guestdriver.ChoicePolicy) { p.Match.Node = -1 },
		"value 256: guestdriver: set attribute POOL_WEIGHTS": func(p *guestdriver.ChoicePolicy) { p.Match.SpeedWeight = 256 },
		"value -5: guestdriver: set attribute BUFFER_WAIT":   func(p *guestdriver.ChoicePolicy) { p.Wait = -5 },
	} {
		p := choicePolicy
		change(&p)
		if err := c.SetChoicePolicy(p); !errors.Is(err, abi.StatusBadValue) || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %s", err, name)
		}
	}
	for attr, name := range map[byte]string{0x32: "BUFFER_POLICY", 0x33: "BUFFER_WAIT", 0x38: "POOL_WEIGHTS"} {
		forge(f, func(tuple []byte) {
			if tuple[0] == attr {
				copy(tuple[8:], "\xff\xff\xff\xff\xff\xff\xff\xff")
			}
		})
		if _, err := c.ChoicePolicy(); !errors.Is(err, abi.StatusBadValue) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s of 2^64-1: %v", name, err)
		}
	}
	f.Intercept(nil)

	// Of the adapter, for connections to come.
	if err := a.SetChoicePolicy(ctx, choicePolicy); err != nil {
		t.Fatal(err)
	}
	f.Restart()
	waitFor(t, "the restart", func() bool { return a.Stats().Resets == 1 })
	waitFor(t, "the policy after it", func() bool {
		p, err := a.ChoicePolicy(ctx)
		return err == nil && p == choicePolicy
	})
	near, other := pair(t, a)
	defer near.Close()
	defer other.Close()
	for _, c := range []*guestdriver.Conn{near, other} {
		if p, err := c.ChoicePolicy(); err != nil || p != choicePolicy {
			t.Errorf("%+v, %v", p, err)
		}
	}
}

// TestChoiceHistory: the history as the adapter says it, and what is none.
func TestChoiceHistory(t *testing.T) {
	a, f := open(t, guestdriver.Options{})
	c, far := pair(t, a)
	defer far.Close()
	value := []byte(nil)
	f.Intercept(func(q int, r abi.Fields) bool {
		if r.Type != abi.TypeConnectionAttr {
			return false
		}
		h := make([]byte, 8)
		f.Peek(r.Base, h)
		if h[0] != 0x3a || h[1] != 0x02 { // get HISTORY
			return false
		}
		copy(h, []byte{0, 0, 0, 0, byte(len(value)), byte(len(value) >> 8), 0, 0}) // OK
		f.Poke(r.Base, append(h, value...))
		go f.Inject(q, guestdrivertest.Answer(r, abi.TypeConnectionAttrs, abi.StatusOK))
		return true
	})
	value = []byte{
		3, 0, 0, 0, 2, 0, 0, 0, // 3 transfers, 2 of them found a buffer
		0x40, 0x4b, 0x4c, 0, 0, 0, 0, 0, // 5 ms
		1, 0, 0, 0, 0, 0, 0, 0x80,
		0, 1, 0, 0, 0, 0, 0, 0,
		0, 0, 1, 0, 0, 0, 0, 0x80,
	}
	h, err := c.ChoiceHistory()
	want := guestdriver.ChoiceHistory{Found: 2, Wait: 5 * time.Millisecond, Transfers: []guestdriver.Transfer{{At: 1, Found: true}, {At: 256}, {At: 65536, Found: true}}}
	if err != nil || fmt.Sprint(h) != fmt.Sprint(want) {
		t.Errorf("%+v, %v, want %+v", h, err, want)
	}
	none := append([]byte{0, 0, 0, 0, 0, 0, 0, 0}, value[8:16]...)
	good := value
	for _, k := range []struct {
		what   string
		value  []byte
		status abi.Status
	}{
		{"no transfers", none, abi.StatusOK},
		{"nothing", nil, abi.StatusBadLength},
		{"a part of a transfer", good[:39], abi.StatusBadLength},
		{"transfers that are not there", good[:32], abi.StatusBadLength},
		{"257 transfers", append([]byte{1, 1}, make([]byte, 14+8*257)...), abi.StatusBadLength},
		{"others found", append([]byte{3, 0, 0, 0, 3}, good[5:]...), abi.StatusBadValue},
		{"2^63 ns", append([]byte{0, 0, 0, 0, 0, 0, 0, 0}, 0, 0, 0, 0, 0, 0, 0, 0x80), abi.StatusBadValue},
	} {
		value = k.value
		h, err := c.ChoiceHistory()
		switch {
		case k.status == abi.StatusOK && (err != nil || h.Wait != 5*time.Millisecond || len(h.Transfers) != 0):
			t.Errorf("%s: %+v, %v", k.what, h, err)
		case k.status != abi.StatusOK && (!errors.Is(err, k.status) || !strings.Contains(err.Error(), "HISTORY 0x023a")):
			t.Errorf("%s: %v", k.what, err)
		}
	}
	c.Close()
	if _, err := c.ChoiceHistory(); err == nil {
		t.Error("the history of a closed connection")
	}
}

// table is what the fake has as BUFFER_TABLE, and the entries that stand there.
func table(t *testing.T, a *guestdriver.Adapter, f *guestdrivertest.Fake) []byte {
	t.Helper()
	v, err := a.Attribute(context.Background(), 0, 0x010f)
	if err != nil {
		t.Fatal(err)
	}
	at, ok := abi.ParseBufferTable(v)
	if !ok {
		t.Fatalf("BUFFER_TABLE % x", v)
	}
	return f.Memory(at.Base, 48*int(at.Entries))
}

// TestBufferTable: what the adapter finds of what was declared, newest first, also after
// a reset; what is refused changes nothing, memory that is gone is out.
func TestBufferTable(t *testing.T) {
	ctx := context.Background()
	a, f := open(t, guestdriver.Options{})
	g, _, _ := receivers(t, a, guestdriver.GroupKey{By: guestdriver.GroupByPort, Port: 0x1234}, 0, 0)
	m, k := region(t, a, 10_000), region(t, a, 500)
	entry := func(m *guestdriver.Memory, off uint64, rest ...byte) []byte {
		var b []byte
		for i := range 8 {
			b = append(b, byte((m.IOVA()+off)>>(8*i)))
		}
		return append(b, rest...)
	}
	check := func(what string, want ...[]byte) {
		t.Helper()
		if got, want := table(t, a, f), bytes.Join(want, nil); !bytes.Equal(got, want) {
			t.Errorf("%s:\n% x, want\n% x", what, got, want)
		}
	}
	check("at first")
	first := entry(m, 0, []byte{
		0x10, 0x27, 0, 0, 0, 0, 0, 0, // length
		3, 0, 0, 0, 0, 0, 0, 0, // speed
		1, 0, 0, 0, 0, 0, 0, 0, // node
		0, 0, 0, 0, 0, 0, 0, 0, // group
		0, 0, 0, 0, 0, 0, 0, 0, // flags
	}...)
	second := entry(k, 100, []byte{
		0x90, 1, 0, 0, 0, 0, 0, 0,
		0, 1, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0x34, 0x12, 0, 0x08,
		1, 0, 0, 0, 0, 0, 0, 0, // contiguous
	}...)
	if err := m.Declare(0, 10_000, guestdriver.Declaration{Speed: 3, Node: 1}); err != nil {
		t.Fatal(err)
	}
	check("one", first)
	if err := k.Declare(100, 400, guestdriver.Declaration{Speed: 256, Group: g, Contiguous: true}); err != nil {
		t.Fatal(err)
	}
	check("two", second, first)
	all := a.BufferTable()
	if len(all) != 2 || all[0] != (guestdriver.Declared{Memory: k, Off: 100, N: 400, Declaration: guestdriver.Declaration{Speed: 256, Group: g, Contiguous: true}}) {
		t.Errorf("%+v", all)
	}
	for _, mode := range []guestdriver.TableMode{guestdriver.TableKept, guestdriver.TableRead, guestdriver.TableKept} {
		if err := a.SetTableMode(ctx, mode); err != nil {
			t.Error(err)
		}
		if got, err := a.TableMode(ctx); got != mode || err != nil {
			t.Errorf("mode %d, %v", got, err)
		}
	}
	if err := a.SetTableMode(ctx, 2); !errors.Is(err, abi.StatusBadValue) || !strings.Contains(err.Error(), "value 2: guestdriver: set attribute BUFFER_TABLE_MODE 0x0110") {
		t.Errorf("mode 2: %v", err)
	}

	// A reset, or two.
	for round := range 2 {
		f.Restart()
		waitFor(t, "the restart", func() bool { return a.Stats().Resets == uint64(round+1) })
		waitFor(t, "the mode after it", func() bool {
			mode, err := a.TableMode(ctx)
			return err == nil && mode == guestdriver.TableKept
		})
		waitFor(t, "the table after it", func() bool { return len(table(t, a, f)) == 96 })
		check("after a reset", second, first)
	}

	// What is none, too much, or refused.
	for _, err := range []error{
		m.Declare(-1, 5, guestdriver.Declaration{}), m.Declare(0, 0, guestdriver.Declaration{}), m.Declare(9_999, 2, guestdriver.Declaration{}),
		m.Declare(0, 5, guestdriver.Declaration{Speed: -1}), m.Declare(0, 5, guestdriver.Declaration{Node: -1}),
	} {
		if err == nil {
			t.Error("declared what is none")
		}
	}
	f.Intercept(func(q int, r abi.Fields) bool {
		if r.Type != abi.TypeAdapterAttr {
			return false
		}
		h := make([]byte, 8)
		f.Peek(r.Base, h)
		if h[0] != 0x0f || h[1] != 0x81 { // set BUFFER_TABLE
			return false
		}
		h[2] = byte(abi.StatusNoMemory)
		f.Poke(r.Base, h)
		go f.Inject(q, guestdrivertest.Answer(r, abi.TypeAdapterAttrs, abi.StatusPartial))
		return true
	})
	if err := m.Declare(0, 5, guestdriver.Declaration{}); !errors.Is(err, abi.StatusNoMemory) || !strings.Contains(err.Error(), "BUFFER_TABLE 0x010f") {
		t.Errorf("without memory: %v", err)
	}
	f.Intercept(nil)
	check("after errors", second, first)
	for i := range 254 {
		if err := m.Declare(i, 1, guestdriver.Declaration{}); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := m.Declare(254, 1, guestdriver.Declaration{}); !errors.Is(err, abi.StatusBadValue) || len(a.BufferTable()) != 256 {
		t.Errorf("the 257th: %v", err)
	}
	if err := m.Declare(0, 10_000, guestdriver.Declaration{Speed: 3, Node: 1}); err != nil {
		t.Errorf("in the place of another: %v", err)
	}
	if got := table(t, a, f); len(got) != 256*48 || !bytes.Equal(got[:48], first) {
		t.Errorf("%d bytes, % x", len(got), got[:48])
	}
	if err := m.Deregister(); err != nil {
		t.Fatal(err)
	}
	check("memory that is gone", second)
	if err := m.Declare(0, 1, guestdriver.Declaration{}); err == nil {
		t.Error("memory that is gone was declared")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := k.Deregister(); err != nil || len(a.BufferTable()) != 0 {
		t.Errorf("%v, %+v", err, a.BufferTable())
	}
}

// What comes for a connection without a buffer of its own waits 10 ms for one, then goes
// to the buffer of the pool that suits it best, a fast one where there are several.
func ExampleConn_SetChoicePolicy() {
	ctx := context.Background()
	a, err := guestdriver.Open(ctx, guestdrivertest.New(), guestdriver.Options{NoReadAhead: true})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	q := guestdriver.NewCompletionQueue()
	pool, err := a.NewReceiveGroup(guestdriver.GroupKey{}, q)
	if err != nil {
		log.Fatal(err)
	}
	m, err := a.Alloc(64 << 10)
	if err != nil {
		log.Fatal(err)
	}
	if err := m.Declare(0, 64<<10, guestdriver.Declaration{Speed: 10, Contiguous: true}); err != nil {
		log.Fatal(err)
	}
	for off := 0; off < 64<<10; off += 4 << 10 {
		b, err := m.Buffer(off, 4<<10)
		if err == nil {
			err = pool.Post(b)
		}
		if err != nil {
			log.Fatal(err)
		}
	}
	c, err := a.Dial("tcp", "10.0.2.2:7") // it echoes
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	conn := c.(*guestdriver.Conn)
	p, err := conn.ChoicePolicy()
	if err != nil {
		log.Fatal(err)
	}
	p.Choice, p.Wait = guestdriver.ChooseWait, 10*time.Millisecond
	p.Match = guestdriver.PoolMatch{Best: true, SpeedWeight: 1}
	if err := errors.Join(conn.SetChoicePolicy(p), pool.Add(conn)); err != nil {
		log.Fatal(err)
	}
	fmt.Fprint(conn, "hello")
	d, err := q.Next(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", d.Buffer.Bytes()[:d.N])
	// Output: hello
}
