// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

type told struct {
	region, event int
	n             uint64
}

// listener is a device that passes on what events it is told of.
type listener struct {
	*vfiousertest.Device
	told chan told
}

func (l listener) IOEvent(region, event int, n uint64) { l.told <- told{region, event, n} }

// wait returns the next event, or fails the test.
func (l listener) wait(t *testing.T) told {
	t.Helper()
	select {
	case e := <-l.told:
		return e
	case <-time.After(time.Minute):
		t.Fatal("the device hears of no event")
		return told{}
	}
}

// eventFile returns an eventfd as a file.
func eventFile(t testing.TB) *os.File {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "eventfd")
	t.Cleanup(func() { f.Close() })
	return f
}

// eventConfig is a device with events of all kinds in BAR0 and one in BAR1.
func eventConfig(t testing.TB) (cfg vfiouser.Config, own, shadow *os.File) {
	own, shadow = eventFile(t), vfiousertest.Memory(t, 0x1000)
	cfg = vfiousertest.Config()
	cfg.Regions[0].IOEvents = []vfiouser.IOEvent{
		{Offset: 0x10, Size: 4, Match: true, Data: 0x11223344},
		{Offset: 0x10, Size: 4, Match: true, Data: 5, PIO: true, File: own},
		{Offset: 0x20, Size: 8, Shadow: shadow, ShadowOffset: 0x18},
		{Offset: 0x30, File: own},
	}
	cfg.Regions[1] = vfiouser.Region{Size: 0x1000, Flags: rw, IOEvents: []vfiouser.IOEvent{{Offset: 0xfff, Size: 1}}}
	return cfg, own, shadow
}

// signal has an eventfd count one more.
func signal(t testing.TB, f *os.File) {
	t.Helper()
	if _, err := unix.Write(int(f.Fd()), binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
		t.Fatal(err)
	}
}

// TestRegionIOFDs asks for events byte by byte.
func TestRegionIOFDs(t *testing.T) {
	const EINVAL, ENOTSUP = 22, 95
	cfg, own, shadow := eventConfig(t)
	const (
		first  = "1000000000000000 0400000000000000 00000000 00000000 01000000 00000000 0000000000000000 4433221100000000"
		second = "1000000000000000 0400000000000000 01000000 00000000 03000000 00000000 0000000000000000 0500000000000000"
		third  = "2000000000000000 0800000000000000 02000000 02000000 00000000 03000000 1800000000000000 0000000000000000"
		fourth = "3000000000000000 0000000000000000 01000000 00000000 00000000 00000000 0000000000000000 0000000000000000"
		last   = "ff0f000000000000 0100000000000000 00000000 00000000 00000000 00000000 0000000000000000 0000000000000000"
		many   = `{"capabilities":{"max_msg_fds":16}}`
	)
	for _, tt := range []struct {
		name, version, ask string
		errno              uint32
		want               string
		files              []*os.File // nil in it: one of the server's
	}{
		{"no room", many, "10000000 00000000 00000000 00000000", 0, "d0000000 00000000 00000000 04000000", nil},
		{"a byte too little", many, "cf000000 00000000 00000000 00000000", 0, "d0000000 00000000 00000000 04000000", nil},
		{"all", many, "d0000000 00000000 00000000 00000000", 0, "d0000000 00000000 00000000 04000000" + first + second + third + fourth, []*os.File{nil, own, nil, shadow}},
		{"for a client of three", `{"capabilities":{"max_msg_fds":3}}`, "ffff0000 00000000 00000000 00000000", 0, "70000000 00000000 00000000 02000000" + first + second, []*os.File{nil, own}},
		{"for a client of one, by default", `{}`, "ffff0000 00000000 00000000 00000000", 0, "40000000 00000000 00000000 01000000" + first, []*os.File{nil}},
		{"for a client of none", `{"capabilities":{"max_msg_fds":0}}`, "ffff0000 00000000 00000000 00000000", 0, "10000000 00000000 00000000 00000000", nil},
		{"another region", many, "40000000 00000000 01000000 00000000", 0, "40000000 00000000 01000000 01000000" + last, []*os.File{nil}},
		{"region without events", many, "40000000 00000000 07000000 00000000", 0, "10000000 00000000 07000000 00000000", nil},
		{"argsz", many, "0f000000 00000000 00000000 00000000", EINVAL, "", nil},
		{"flags", many, "d0000000 01000000 00000000 00000000", EINVAL, "", nil},
		{"region", many, "d0000000 00000000 09000000 00000000", EINVAL, "", nil},
		{"region far out", many, "d0000000 00000000 ffffffff 00000000", EINVAL, "", nil},
		{"count", many, "d0000000 00000000 00000000 01000000", EINVAL, "", nil},
		{"short", many, "d0000000 00000000 00000000", EINVAL, "", nil},
		{"empty", many, "", EINVAL, "", nil},
	} {
		dev := listener{vfiousertest.NewDevice(cfg), make(chan told, 16)}
		_, conn := vfiousertest.Serve(t, dev, cfg)
		p := vfiousertest.NewPeer(t, conn)
		p.Version(tt.version)
		r, files := p.DoFDs(vfiousertest.Message{ID: 3, Command: 6, Payload: unhex(t, tt.ask)})
		expect(t, r, tt.errno)
		if want := unhex(t, tt.want); !slices.Equal(r.Payload, want) {
			t.Errorf("%s:\n%s, want\n%s", tt.name, hex.EncodeToString(r.Payload), hex.EncodeToString(want))
		}
		if len(files) != len(tt.files) {
			t.Fatalf("%s: %d files, want %d", tt.name, len(files), len(tt.files))
		}
		for i, f := range tt.files {
			if f == shadow && inode(t, files[i]) != inode(t, shadow) {
				t.Errorf("%s: file %d is not the shadow", tt.name, i)
			}
			if f == own {
				signal(t, files[i])
				if n, err := unix.Read(int(own.Fd()), make([]byte, 8)); n != 8 || err != nil {
					t.Errorf("%s: file %d is not the device's eventfd: %v", tt.name, i, err)
				}
			}
			if f == nil {
				signal(t, files[i])
				want := told{0, i, 1}
				if tt.name == "another region" {
					want.region = 1
				}
				if got := dev.wait(t); got != want {
					t.Errorf("%s: the device hears %+v, want %+v", tt.name, got, want)
				}
			}
		}
		conn.Close()
		<-dev.Gone
	}
	// A device without any says that it knows no such thing.
	plain := vfiousertest.Config()
	_, conn := vfiousertest.Serve(t, vfiousertest.NewDevice(plain), plain)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	expect(t, p.Do(vfiousertest.Message{ID: 3, Command: 6, Payload: unhex(t, "10000000 00000000 00000000 00000000")}), ENOTSUP)
}

// TestIOEvents has clients signal events, be awkward about it, and go.
func TestIOEvents(t *testing.T) {
	cfg, _, _ := eventConfig(t)
	dev := listener{vfiousertest.NewDevice(cfg), make(chan told, 16)}
	srv, err := vfiouser.NewServer(dev, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		before := openFDs(t)
		c, err := vfiouser.NewClient(vfiousertest.Connect(t, srv), vfiouser.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		events, err := c.IOEvents(0)
		if err != nil || len(events) != 4 {
			t.Fatalf("%+v, %v", events, err)
		}
		for i, e := range events {
			want := cfg.Regions[0].IOEvents[i]
			if (e.Shadow == nil) != (want.Shadow == nil) || e.File == nil {
				t.Errorf("event %d has files %v, %v", i, e.File, e.Shadow)
			}
			want.File, want.Shadow = e.File, e.Shadow
			if e != want {
				t.Errorf("event %d is %+v, want %+v", i, e, want)
			}
		}
		// The same eventfd when asked again.
		again, err := c.IOEvents(0)
		if err != nil {
			t.Fatal(err)
		}
		signal(t, again[0].File)
		if got := dev.wait(t); got != (told{0, 0, 1}) {
			t.Errorf("the device hears %+v", got)
		}
		// The count is what came together, and nothing is lost.
		total := uint64(0)
		var wg sync.WaitGroup
		wg.Go(func() {
			for range 100 {
				signal(t, events[2].File)
			}
		})
		for total < 100 {
			got := dev.wait(t)
			if got.region != 0 || got.event != 2 || got.n == 0 {
				t.Fatalf("the device hears %+v", got)
			}
			total += got.n
		}
		wg.Wait()
		if total != 100 {
			t.Errorf("100 signals were heard as %d", total)
		}
		// The store by message is the device's as ever.
		if err := c.WriteRegion(0, 0x10, []byte{0x44, 0x33, 0x22, 0x11}); err != nil {
			t.Error(err)
		}
		c.Close()
		<-dev.Gone
		for _, e := range append(events, again...) {
			if e.Shadow == nil || e.File != e.Shadow {
				signal(t, e.File) // nobody is there
			}
		}
		for _, e := range append(events, again...) {
			e.File.Close()
			if e.Shadow != nil {
				e.Shadow.Close()
			}
		}
		if after := openFDs(t); after > before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	}
	select {
	case got := <-dev.told:
		t.Errorf("the device hears %+v without a client", got)
	default:
	}
	if srv.Stats().IOEvents == 0 {
		t.Error("no events counted")
	}
}

// TestIOEventsTaken has a client make an eventfd blocking and take its count when
// the server is about to: the server must not wait for another.
func TestIOEventsTaken(t *testing.T) {
	cfg, _, _ := eventConfig(t)
	dev := listener{vfiousertest.NewDevice(cfg), make(chan told)} // each call waits for us
	srv, c := vfiousertest.Start(t, dev, cfg, vfiouser.ClientConfig{})
	events, err := c.IOEvents(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		defer e.File.Close()
		if e.Shadow != nil {
			defer e.Shadow.Close()
		}
	}
	taken, other := events[0].File, events[2].File
	if err := unix.SetNonblock(int(taken.Fd()), false); err != nil {
		t.Fatal(err)
	}
	signal(t, other)
	waitFor(t, "the first call", func() bool { return srv.Stats().IOEvents == 1 })
	// Both are ready now, and found together once the call has returned.
	signal(t, other)
	signal(t, taken)
	dev.wait(t)
	waitFor(t, "the second call", func() bool { return srv.Stats().IOEvents == 2 })
	if _, err := unix.Preadv2(int(taken.Fd()), [][]byte{make([]byte, 8)}, -1, unix.RWF_NOWAIT); err != nil {
		t.Fatal(err)
	}
	dev.wait(t)
	signal(t, other)
	if got := dev.wait(t); got != (told{0, 2, 1}) {
		t.Errorf("the device hears %+v", got)
	}
}

// TestIOEventsConfig refuses events that make no sense.
func TestIOEventsConfig(t *testing.T) {
	f := vfiousertest.Memory(t, 0x1000)
	many := make([]vfiouser.IOEvent, 129)
	for i := range many {
		many[i] = vfiouser.IOEvent{Offset: uint64(i), Size: 1}
	}
	for name, events := range map[string][]vfiouser.IOEvent{
		"beyond":          {{Offset: 0x1000, Size: 1}},
		"over the end":    {{Offset: 0xffd, Size: 4}},
		"far":             {{Offset: 1<<64 - 4, Size: 4}},
		"size":            {{Size: 3}},
		"data too wide":   {{Size: 1, Match: true, Data: 256}},
		"match any size":  {{Match: true, Data: 1}},
		"twice":           {{Size: 4}, {Size: 4}},
		"twice, any size": {{Size: 4, Match: true, Data: 1}, {}},
		"twice, any data": {{Size: 4, Match: true, Data: 1}, {Size: 4}},
		"shadow align":    {{Size: 4, Shadow: f, ShadowOffset: 4}},
		"shadow beyond":   {{Size: 4, Shadow: f, ShadowOffset: 0x1000}},
		"no eventfd":      {{Size: 4, File: f}},
		"too many":        many,
	} {
		cfg := vfiousertest.Config()
		cfg.Regions[0].IOEvents = events
		if _, err := vfiouser.NewServer(listener{}, cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	cfg := vfiousertest.Config()
	cfg.Regions[0].IOEvents = []vfiouser.IOEvent{{Size: 4}}
	if _, err := vfiouser.NewServer(quiet{}, cfg); err == nil {
		t.Error("a device that cannot be told is accepted")
	}
	cfg.Regions[0].IOEvents = nil
	cfg.Regions[vfiouser.RegionROM].IOEvents = []vfiouser.IOEvent{{Size: 4}}
	if _, err := vfiouser.NewServer(listener{}, cfg); err == nil {
		t.Error("events of a ROM are accepted")
	}
}

// TestClientIOEvents has servers describe events as they should, and as none
// should. The region has 0x1000 bytes.
func TestClientIOEvents(t *testing.T) {
	f := eventFile(t)
	fd := int(f.Fd())
	const (
		at10  = "1000000000000000 0400000000000000 00000000 00000000 01000000 00000000 0000000000000000 0500000000000000"
		plain = "1000000000000000 0400000000000000 00000000 00000000 01000000 00000000 0500000000000000" // of 40 bytes
	)
	match := []vfiouser.IOEvent{{Offset: 0x10, Size: 4, Match: true, Data: 5}}
	for _, tt := range []struct {
		name  string
		count byte
		reply string
		fds   []int
		want  []vfiouser.IOEvent
		bad   bool
	}{
		{"one", 1, at10, []int{fd}, match, false},
		{"as the specification has it", 1, plain, []int{fd}, match, false},
		{"none", 0, "", nil, nil, false},
		{"a kind that we do not know", 2, at10[:34] + " 00000000 01000000" + at10[52:] + at10, []int{fd}, match, false},
		{"a flag that we do not know", 1, "1000000000000000 0400000000000000 00000000 00000000 04000000 00000000 0000000000000000 0500000000000000", []int{fd}, nil, false},
		{"data without match", 1, "1000000000000000 0400000000000000 00000000 00000000 00000000 00000000 0000000000000000 0500000000000000", []int{fd}, []vfiouser.IOEvent{{Offset: 0x10, Size: 4}}, false},
		{"no descriptor", 1, at10, nil, nil, true},
		{"descriptor out of range", 2, at10 + "1000000000000000 0400000000000000 01000000 00000000 01000000 00000000 0000000000000000 0600000000000000", []int{fd}, nil, true},
		{"shadow out of range", 1, "1000000000000000 0400000000000000 00000000 02000000 00000000 ffffffff 0000000000000000 0000000000000000", []int{fd}, nil, true},
		{"beyond the region", 1, "0010000000000000 0400000000000000 00000000 00000000 00000000 00000000 0000000000000000 0000000000000000", []int{fd}, nil, true},
		{"wraps", 1, "fcffffffffffffff 0800000000000000 00000000 00000000 00000000 00000000 0000000000000000 0000000000000000", []int{fd}, nil, true},
		{"size", 1, "1000000000000000 0300000000000000 00000000 00000000 00000000 00000000 0000000000000000 0000000000000000", []int{fd}, nil, true},
		{"count too high", 2, at10, []int{fd}, nil, true},
		{"count too low", 0, at10, []int{fd}, nil, true},
		{"cut short", 1, at10[:34], []int{fd}, nil, true},
	} {
		a, b := vfiousertest.Pair(t)
		p := vfiousertest.NewPeer(t, b)
		payload := unhex(t, "00000000 00000000 00000000 00000000"+tt.reply)
		binary.NativeEndian.PutUint32(payload, uint32(len(payload)))
		payload[12] = tt.count
		var wg sync.WaitGroup
		wg.Go(func() {
			reply := func(payload []byte, fds ...int) {
				q := p.Recv()
				p.Send(vfiousertest.Message{ID: q.ID, Command: q.Command, Flags: 1, Payload: payload}.Bytes(), fds...)
			}
			reply([]byte("\x00\x00\x00\x00{}\x00"))
			reply(unhex(t, "20000000 03000000 00000000 00000000 0010000000000000 0000000000000000"))
			if len(payload) > 16 {
				reply(slices.Clone(payload[:16]))
			}
			reply(payload, tt.fds...)
		})
		c, err := vfiouser.NewClient(a, vfiouser.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		before := openFDs(t)
		got, err := c.IOEvents(0)
		wg.Wait()
		for i := range got {
			got[i].File.Close()
			got[i].File = nil
		}
		if tt.bad != errors.Is(err, syscall.EPROTO) || !tt.bad && err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %+v, %v, want %+v", tt.name, got, err, tt.want)
		}
		if after := openFDs(t); after != before {
			t.Errorf("%s: %d descriptors before, %d after", tt.name, before, after)
		}
		c.Close()
		b.Close()
	}
}
