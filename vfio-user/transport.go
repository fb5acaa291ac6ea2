// SPDX-License-Identifier: Apache-2.0

package vfiouser

import (
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// MessageFlags are the flags in a message's header.
type MessageFlags uint32

// Flags of a message, vfio-user "Header".
const (
	MessageReply   = MessageFlags(typeReply)   // a reply; a command without it
	MessageNoReply = MessageFlags(flagNoReply) // a command that wants no reply
	MessageError   = MessageFlags(flagError)   // a reply that says what went wrong
)

// Message is a message as it is on the wire, for programs that pass messages
// on. A server or client has no use for it.
type Message struct {
	ID      uint16
	Command Command
	Flags   MessageFlags
	Errno   syscall.Errno // of an error reply
	Payload []byte        // of a received message: until the next Fill
	FDs     []int         // of a received message: the receiver's to close

	// Err says why a received message is not whole: EMSGSIZE, its payload was
	// too long and is being discarded; EINVAL, it had more file descriptors
	// than allowed, and they are closed.
	Err error
}

// AppendMessage appends m to b as it is on the wire, without FDs.
func AppendMessage(b []byte, m *Message) []byte {
	h := header{id: m.ID, cmd: m.Command, size: uint32(headerSize + len(m.Payload)), flags: uint32(m.Flags), errno: uint32(m.Errno)}
	return append(h.appendTo(b), m.Payload...)
}

// TransportConfig sets the limits of a [Transport]. A zero limit stands for its
// default.
type TransportConfig struct {
	MaxTransfer int           // bytes of data in a message, default 1 MiB
	MaxFDs      int           // file descriptors in a message, default 16
	Spin        time.Duration // as Config.Spin
	SendTimeout time.Duration // for a peer that does not read, default 10 s
}

// Transport cuts a connection into messages. Next and Fill are for one
// goroutine; the other methods are safe for concurrent use.
type Transport struct{ st *stream }

// NewTransport takes over c.
func NewTransport(c *net.UnixConn, cfg TransportConfig) (*Transport, error) {
	preset(&cfg.MaxTransfer, defaultMaxTransfer)
	preset(&cfg.MaxFDs, defaultServerFDs)
	preset(&cfg.Spin, defaultSpin)
	preset(&cfg.SendTimeout, defaultSendTimeout)
	if cfg.MaxTransfer < 0 || cfg.MaxTransfer > mostTransfer || cfg.MaxFDs < 0 || cfg.MaxFDs > mostFDs || cfg.SendTimeout < 0 {
		c.Close()
		return nil, fmt.Errorf("vfiouser: transport limit out of range: %w", syscall.EINVAL)
	}
	st, err := newStream(c, mostHead+max(cfg.MaxTransfer, leastMessage), cfg.MaxFDs, cfg.Spin, cfg.SendTimeout)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("vfiouser: transport: %w", err)
	}
	return &Transport{st}, nil
}

// Next returns the next message that has arrived whole, if there is one. It
// does not read.
func (t *Transport) Next() (m Message, ok bool, err error) {
	in, ok, err := t.st.next()
	if !ok || err != nil {
		return m, false, err
	}
	m = Message{ID: in.id, Command: in.cmd, Flags: MessageFlags(in.flags), Errno: syscall.Errno(in.errno), Payload: in.payload, FDs: in.fds}
	switch {
	case in.tooLong:
		m.Err = syscall.EMSGSIZE
	case in.badFDs:
		m.Err = syscall.EINVAL
	}
	return m, true, nil
}

// Fill waits for input. It returns io.EOF when the connection has ended in the
// ordinary way, from either side. After an error, Close and then Discard.
func (t *Transport) Fill() error {
	err := t.st.fill()
	if err != nil && isClosed(err) {
		return io.EOF
	}
	return err
}

// Send writes b, any number of whole messages, with fds attached to the first
// byte. It keeps neither. After an error the connection is closed.
func (t *Transport) Send(b []byte, fds ...int) error { return t.st.send(b, fds...) }

// Close ends the connection and unblocks Fill and Send.
func (t *Transport) Close() { t.st.close() }

// Discard closes the file descriptors of a message that never became whole. It
// is for the goroutine of Next and Fill, after its last call.
func (t *Transport) Discard() { t.st.discard() }
