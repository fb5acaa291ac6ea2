// SPDX-License-Identifier: Apache-2.0

package qtest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxLine bounds one answer; the longest is a block read of maxBlock.
	maxLine = 2 * maxBlock
	// maxBlock is the most memory one command carries, in bytes.
	maxBlock = 1 << 20
	// DefaultTimeout bounds one command.
	DefaultTimeout = 10 * time.Second
	// maxIRQ bounds the interrupt numbers QEMU may name.
	maxIRQ = 4096
)

// An Error is a command QEMU refused.
type Error struct {
	Command string // its first word
	Answer  string
}

func (e *Error) Error() string { return "qtest: " + e.Command + ": " + e.Answer }

// A Client is one qtest connection.
type Client struct {
	// Timeout bounds one command; it may be set before first use.
	Timeout time.Duration

	mu     sync.Mutex
	conn   net.Conn
	buf    []byte // received and not yet used
	out    []byte
	broken error
	irqs   map[int]bool // levels of intercepted lines
}

// New returns a client that owns conn.
func New(conn net.Conn) *Client {
	return &Client{Timeout: DefaultTimeout, conn: conn, irqs: map[int]bool{}}
}

// Close closes the connection and unblocks whoever waits on it.
func (c *Client) Close() error { return c.conn.Close() }

// Command sends one line and returns what follows OK in its answer. Most callers
// want the typed methods.
func (c *Client) Command(format string, args ...any) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = fmt.Appendf(c.out[:0], format, args...)
	if bytes.ContainsAny(c.out, "\r\n") {
		return "", errors.New("qtest: line break in a command")
	}
	return c.exchangeLocked()
}

// exchangeLocked sends c.out and reads up to its answer.
func (c *Client) exchangeLocked() (string, error) {
	if c.broken != nil {
		return "", c.broken
	}
	word, _, _ := strings.Cut(string(c.out[:min(len(c.out), 32)]), " ")
	deadline := time.Now().Add(c.Timeout)
	c.conn.SetDeadline(deadline) //nolint:errcheck // the I/O below tells
	if _, err := c.conn.Write(append(c.out, '\n')); err != nil {
		return "", c.breakLocked(word, err)
	}
	for {
		line, err := c.lineLocked()
		if err != nil {
			return "", c.breakLocked(word, err)
		}
		switch rest, isOK := strings.CutPrefix(line, "OK"); {
		case isOK && (rest == "" || rest[0] == ' '):
			return strings.TrimSpace(rest), nil
		case strings.HasPrefix(line, "IRQ "):
			if err := c.irqLocked(line); err != nil {
				return "", c.breakLocked(word, err)
			}
		case strings.HasPrefix(line, "FAIL"), strings.HasPrefix(line, "ERR"):
			return "", &Error{Command: word, Answer: line}
		default:
			return "", c.breakLocked(word, fmt.Errorf("unexpected answer %.40q", line))
		}
	}
}

func (c *Client) breakLocked(word string, err error) error {
	c.broken = fmt.Errorf("qtest: %s: %w", word, err)
	c.conn.Close() //nolint:errcheck // already failed
	return c.broken
}

// lineLocked returns the next line without its end. Bytes read before a time-out
// stay in the buffer.
func (c *Client) lineLocked() (string, error) {
	for from := 0; ; {
		if i := bytes.IndexByte(c.buf[from:], '\n'); i >= 0 {
			line := string(c.buf[:from+i])
			c.buf = append(c.buf[:0], c.buf[from+i+1:]...)
			return strings.TrimSuffix(line, "\r"), nil
		}
		from = len(c.buf)
		if from > maxLine {
			return "", errors.New("endless line")
		}
		var chunk [4096]byte
		n, err := c.conn.Read(chunk[:])
		c.buf = append(c.buf, chunk[:n]...)
		if n == 0 && err != nil {
			return "", err
		}
	}
}

// irqLocked notes `IRQ raise N` or `IRQ lower N`.
func (c *Client) irqLocked(line string) error {
	f := strings.Fields(line)
	if len(f) != 3 || f[1] != "raise" && f[1] != "lower" {
		return fmt.Errorf("unexpected line %.40q", line)
	}
	n, err := strconv.Atoi(f[2])
	if err != nil || n < 0 || n > maxIRQ {
		return fmt.Errorf("unexpected line %.40q", line)
	}
	c.irqs[n] = f[1] == "raise"
	return nil
}

// IRQ returns the level of an intercepted interrupt line as last reported.
func (c *Client) IRQ(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.irqs[n]
}

// WaitIRQ waits until interrupt line n has the level. Other commands wait
// meanwhile.
func (c *Client) WaitIRQ(ctx context.Context, n int, level bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.SetReadDeadline(time.Time{}) //nolint:errcheck // the read tells
	ran := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ran)
		c.conn.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // a closed connection ends the read too
	})
	defer func() {
		if !stop() {
			<-ran // else it could cut short the next command
		}
	}()
	for c.irqs[n] != level {
		if c.broken != nil {
			return c.broken
		}
		line, err := c.lineLocked()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("qtest: wait for irq %d: %w", n, context.Cause(ctx))
		}
		if err == nil {
			err = c.irqLocked(line)
		}
		if err != nil {
			return c.breakLocked("wait for irq", err)
		}
	}
	return nil
}

// number runs a command that answers with one number.
func (c *Client) number(format string, args ...any) (uint64, error) {
	s, err := c.Command(format, args...)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("qtest: answer %.40q: %w", s, err)
	}
	return v, nil
}

func (c *Client) nothing(format string, args ...any) error {
	_, err := c.Command(format, args...)
	return err
}

// In8 reads an I/O port.
func (c *Client) In8(port uint16) (uint8, error) {
	v, err := c.number("inb %#x", port)
	return uint8(v), err
}

// In16 reads an I/O port.
func (c *Client) In16(port uint16) (uint16, error) {
	v, err := c.number("inw %#x", port)
	return uint16(v), err
}

// In32 reads an I/O port.
func (c *Client) In32(port uint16) (uint32, error) {
	v, err := c.number("inl %#x", port)
	return uint32(v), err
}

// Out8 writes an I/O port.
func (c *Client) Out8(port uint16, v uint8) error { return c.nothing("outb %#x %#x", port, v) }

// Out16 writes an I/O port.
func (c *Client) Out16(port uint16, v uint16) error { return c.nothing("outw %#x %#x", port, v) }

// Out32 writes an I/O port.
func (c *Client) Out32(port uint16, v uint32) error { return c.nothing("outl %#x %#x", port, v) }

// Read8 reads guest physical memory, a BAR included, by one access of that width.
func (c *Client) Read8(addr uint64) (uint8, error) {
	v, err := c.number("readb %#x", addr)
	return uint8(v), err
}

// Read16 is Read8 for 16 bits.
func (c *Client) Read16(addr uint64) (uint16, error) {
	v, err := c.number("readw %#x", addr)
	return uint16(v), err
}

// Read32 is Read8 for 32 bits.
func (c *Client) Read32(addr uint64) (uint32, error) {
	v, err := c.number("readl %#x", addr)
	return uint32(v), err
}

// Read64 is Read8 for 64 bits.
func (c *Client) Read64(addr uint64) (uint64, error) { return c.number("readq %#x", addr) }

// Write8 writes guest physical memory, a BAR included, by one access of that width.
func (c *Client) Write8(addr uint64, v uint8) error { return c.nothing("writeb %#x %#x", addr, v) }

// Write16 is Write8 for 16 bits.
func (c *Client) Write16(addr uint64, v uint16) error { return c.nothing("writew %#x %#x", addr, v) }

// Write32 is Write8 for 32 bits.
func (c *Client) Write32(addr uint64, v uint32) error { return c.nothing("writel %#x %#x", addr, v) }

// Write64 is Write8 for 64 bits.
func (c *Client) Write64(addr uint64, v uint64) error { return c.nothing("writeq %#x %#x", addr, v) }

// Read fills p from guest physical memory; widths and order are QEMU's choice.
func (c *Client) Read(addr uint64, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), maxBlock)
		s, err := c.Command("b64read %#x %#x", addr, n)
		if err != nil {
			return err
		}
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil || len(b) != n {
			return fmt.Errorf("qtest: b64read: answer of %d characters for %d bytes", len(s), n)
		}
		copy(p, b)
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// Write copies p to guest physical memory; widths and order are QEMU's choice.
func (c *Client) Write(addr uint64, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), maxBlock)
		if err := c.nothing("b64write %#x %#x %s", addr, n, base64.StdEncoding.EncodeToString(p[:n])); err != nil {
			return err
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// Memset fills guest physical memory.
func (c *Client) Memset(addr, size uint64, v uint8) error {
	if size == 0 {
		return nil
	}
	return c.nothing("memset %#x %#x %#x", addr, size, v)
}

// ClockStep lets d of virtual time pass, or, when d is 0, as much as the next timer
// wants, and returns the virtual time. Only machines with -accel qtest have it.
func (c *Client) ClockStep(d time.Duration) (time.Duration, error) {
	format, args := "clock_step", []any(nil)
	if d > 0 {
		format, args = "clock_step %d", []any{d.Nanoseconds()}
	}
	v, err := c.number(format, args...)
	return time.Duration(v), err
}

// InterceptIn makes IRQ and WaitIRQ follow the interrupt inputs of a device, e.g.
// "ioapic" for INTx on a PC. One device per machine can be followed.
func (c *Client) InterceptIn(path string) error { return c.nothing("irq_intercept_in %s", path) }

// InterceptOut does the same for outputs.
func (c *Client) InterceptOut(path string) error { return c.nothing("irq_intercept_out %s", path) }
