// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// Limits of the protocol, doc.go.
const (
	headerSize = 8
	maxPayload = 32 << 10
	window     = 256 << 10 // bytes in flight per stream, channel and direction
	channels   = 3
	maxStreams = 256 // open at once, of each side
	version    = 1
)

// maxMessages is how many messages a stream holds for a slow handler.
const maxMessages = 64

type frameType uint8

const (
	frameHello frameType = iota + 1
	frameOpen
	frameData
	frameCredit
	frameEnd
	frameMessage
	frameClose
)

// A frame is one decoded header; its payload is valid until the next is read.
type frame struct {
	kind    frameType
	channel uint8
	stream  uint32
	payload []byte
}

// Hello is the first frame of each side.
type Hello struct {
	Version int               `json:"version"`
	Info    map[string]string `json:"info,omitempty"` // e.g. the guest's kernel release
}

// A Request opens a stream.
type Request struct {
	Kind string          `json:"kind"`           // what the other side is to do: "exec" or a name it knows
	Args []string        `json:"args,omitempty"` // of exec: program and arguments
	Env  []string        `json:"env,omitempty"`  // of exec: added to the guest's own
	Dir  string          `json:"dir,omitempty"`  // of exec
	TTY  bool            `json:"tty,omitempty"`  // of exec: on a terminal; its output comes on channel 1
	Rows uint16          `json:"rows,omitempty"`
	Cols uint16          `json:"cols,omitempty"`
	Body json.RawMessage `json:"body,omitempty"` // of other kinds
}

// A Message goes to the handler of an open stream.
type Message struct {
	Signal string `json:"signal,omitempty"` // one of the names in exec.go
	Rows   uint16 `json:"rows,omitempty"`   // new size of the terminal
	Cols   uint16 `json:"cols,omitempty"`
}

// A Result ends a stream.
type Result struct {
	Status int             `json:"status"`          // exit status as a shell would give it
	Error  string          `json:"error,omitempty"` // why there was nothing to exit
	Body   json.RawMessage `json:"body,omitempty"`
}

// appendFrame appends a frame to b.
func appendFrame(b []byte, kind frameType, channel uint8, stream uint32, payload []byte) []byte {
	b = append(b, byte(kind), channel)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

// readFrame reads the next frame into buf, which holds headerSize+maxPayload bytes.
func readFrame(r io.Reader, buf []byte) (frame, error) {
	h := buf[:headerSize]
	if _, err := io.ReadFull(r, h); err != nil {
		return frame{}, err
	}
	f := frame{kind: frameType(h[0]), channel: h[1], stream: binary.LittleEndian.Uint32(h[4:])}
	n := int(binary.LittleEndian.Uint16(h[2:]))
	switch {
	case f.kind < frameHello || f.kind > frameClose:
		return frame{}, fmt.Errorf("unknown frame type %d", f.kind)
	case n > maxPayload:
		return frame{}, fmt.Errorf("frame of %d bytes", n)
	case f.channel >= channels:
		return frame{}, fmt.Errorf("channel %d", f.channel)
	case (f.stream == 0) != (f.kind == frameHello):
		return frame{}, fmt.Errorf("frame type %d on stream %d", f.kind, f.stream)
	}
	f.payload = buf[headerSize : headerSize+n]
	if _, err := io.ReadFull(r, f.payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	return f, nil
}
