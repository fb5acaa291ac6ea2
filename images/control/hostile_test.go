// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"io"
	"testing"
)

const (
	helloBytes = "\x01\x00\x0d\x00\x00\x00\x00\x00" + `{"version":1}`
	openBytes  = "\x02\x00\x0c\x00\x01\x00\x00\x00" + `{"kind":"x"}` // stream 1
)

func TestFrameOnTheWire(t *testing.T) {
	got := appendFrame(nil, frameData, 2, 0x01020304, []byte("hi"))
	want := []byte{
		3,    // type: data
		2,    // channel
		2, 0, // length
		4, 3, 2, 1, // stream
		'h', 'i',
	}
	if !bytes.Equal(got, want) {
		t.Errorf("frame = % x, want % x", got, want)
	}
	f, err := readFrame(bytes.NewReader(want), make([]byte, headerSize+maxPayload))
	if err != nil || f.kind != frameData || f.channel != 2 || f.stream != 0x01020304 || string(f.payload) != "hi" {
		t.Errorf("read %+v, %v", f, err)
	}
}

// Whatever a guest writes ends in an orderly end of the session.
func TestHostileBytes(t *testing.T) {
	var flood []byte
	for range 256<<10/16384 + 1 {
		flood = append(flood, "\x03\x00\x00\x40\x01\x00\x00\x00"...)
		flood = append(flood, make([]byte, 0x4000)...)
	}
	var many []byte
	for i := range 257 {
		many = appendFrame(many, frameOpen, 0, uint32(2*i+1), []byte("{}"))
	}
	var chatter []byte
	for range 65 {
		chatter = append(chatter, "\x06\x00\x02\x00\x01\x00\x00\x00{}"...)
	}
	for name, b := range map[string]string{
		"nothing":             "",
		"half a header":       "\x01\x00",
		"half a payload":      "\x01\x00\x0d\x00\x00\x00\x00\x00{",
		"type 0":              "\x00\x00\x00\x00\x00\x00\x00\x00",
		"type 8":              helloBytes + "\x08\x00\x00\x00\x01\x00\x00\x00",
		"long payload":        helloBytes + "\x03\x00\x01\x80\x01\x00\x00\x00",
		"channel 3":           helloBytes + openBytes + "\x03\x03\x00\x00\x01\x00\x00\x00",
		"data before hello":   openBytes,
		"hello on a stream":   "\x01\x00\x0d\x00\x01\x00\x00\x00" + `{"version":1}`,
		"hello twice":         helloBytes + helloBytes,
		"hello, no JSON":      "\x01\x00\x01\x00\x00\x00\x00\x00x",
		"hello of version 2":  "\x01\x00\x0d\x00\x00\x00\x00\x00" + `{"version":2}`,
		"data on stream 0":    helloBytes + "\x03\x00\x00\x00\x00\x00\x00\x00",
		"unopened stream":     helloBytes + "\x03\x00\x00\x00\x07\x00\x00\x00",
		"our stream":          helloBytes + "\x03\x00\x00\x00\x02\x00\x00\x00",
		"open with our id":    helloBytes + "\x02\x00\x02\x00\x02\x00\x00\x00{}",
		"open twice":          helloBytes + openBytes + openBytes,
		"open, no JSON":       helloBytes + "\x02\x00\x01\x00\x01\x00\x00\x00x",
		"too many opens":      helloBytes + string(many),
		"data beyond window":  helloBytes + openBytes + string(flood),
		"short credit":        helloBytes + openBytes + "\x04\x00\x01\x00\x01\x00\x00\x00\x01",
		"credit for nothing":  helloBytes + openBytes + "\x04\x00\x04\x00\x01\x00\x00\x00\x01\x00\x00\x00",
		"credit of 4 GiB":     helloBytes + openBytes + "\x04\x00\x04\x00\x01\x00\x00\x00\xff\xff\xff\xff",
		"message, no JSON":    helloBytes + openBytes + "\x06\x00\x01\x00\x01\x00\x00\x00x",
		"too many messages":   helloBytes + openBytes + string(chatter),
		"close, no JSON":      helloBytes + openBytes + "\x07\x00\x01\x00\x01\x00\x00\x00x",
		"end and then an end": helloBytes + openBytes + "\x05\x00\x00\x00\x01\x00\x00\x00\x05\x00\x00\x00\x01\x00\x00\x00\xff\x00\x00\x00\x01\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			a, b2 := socketpair(t)
			s := New(a, Config{Role: Guest, Handler: func(ctx context.Context, st *Stream) Result {
				<-ctx.Done()
				return Result{}
			}})
			go io.Copy(io.Discard, b2)
			// The peer hangs on: only the bytes may end the session.
			go io.WriteString(b2, b)
			if name == "nothing" || name == "half a header" || name == "half a payload" {
				go b2.(interface{ CloseWrite() error }).CloseWrite()
			}
			select {
			case <-s.Done():
			case <-testContext(t).Done():
				t.Error("the session goes on")
			}
			s.Close()
			b2.Close()
		})
	}
}

func FuzzSession(f *testing.F) {
	f.Add([]byte(helloBytes + openBytes))
	f.Add([]byte(helloBytes + openBytes + "\x03\x00\x02\x00\x01\x00\x00\x00hi\x05\x00\x00\x00\x01\x00\x00\x00\x07\x00\x02\x00\x01\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(&canned{r: bytes.NewReader(b)}, Config{Role: Guest, Handler: func(ctx context.Context, st *Stream) Result {
			io.Copy(st.Writer(1), st.Reader(0))
			return Result{}
		}})
		<-s.Done()
		s.Close()
	})
}

// canned is a peer that says what it says and reads everything.
type canned struct{ r *bytes.Reader }

func (c *canned) Read(p []byte) (int, error)  { return c.r.Read(p) }
func (c *canned) Write(p []byte) (int, error) { return len(p), nil }
func (c *canned) Close() error                { return nil }
