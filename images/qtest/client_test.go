// SPDX-License-Identifier: Apache-2.0

package qtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// serve plays QEMU: for each expected line it writes the reply as it stands.
func serve(t *testing.T, script ...[2]string) *Client {
	t.Helper()
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer there.Close()
		r := bufio.NewReader(there)
		for _, s := range script {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Errorf("QEMU read: %v, want %q", err, s[0])
				return
			}
			if line != s[0]+"\n" {
				t.Errorf("QEMU got %q, want %q", line, s[0])
			}
			if _, err := io.WriteString(there, s[1]); err != nil && !strings.HasSuffix(s[1], "!") {
				return
			}
		}
		r.ReadByte()
	}()
	c := New(here)
	t.Cleanup(func() { c.Close(); <-done })
	return c
}

func TestCommandsOnTheWire(t *testing.T) {
	c := serve(t,
		[2]string{"readl 0xfe000010", "OK 0x0000000012345678\n"},
		[2]string{"writeq 0x1000 0xffffffffffffffff", "OK\n"},
		[2]string{"b64read 0x20 0x3", "OK AQID\n"},
		[2]string{"b64write 0x20 0x3 AQID", "OK\r\n"},
		[2]string{"inw 0x70", "OK 0x1234\n"},
		[2]string{"memset 0x0 0x10 0xab", "OK\n"},
		[2]string{"clock_step 1500", "OK 42000\n"},
		[2]string{"clock_step", "OK 43000\n"},
		[2]string{"outl 0xcf8 0x80002810", "OK\n"},
		[2]string{"inw 0xcfe", "OK 0xbeef\n"},
	)
	if v, err := c.Read32(0xfe000010); v != 0x12345678 || err != nil {
		t.Errorf("Read32 = %#x, %v", v, err)
	}
	if err := c.Write64(0x1000, 1<<64-1); err != nil {
		t.Error(err)
	}
	p := make([]byte, 3)
	if err := c.Read(0x20, p); err != nil || !bytes.Equal(p, []byte{1, 2, 3}) {
		t.Errorf("Read = %v, %v", p, err)
	}
	if err := c.Write(0x20, p); err != nil {
		t.Error(err)
	}
	if v, err := c.In16(0x70); v != 0x1234 || err != nil {
		t.Errorf("In16 = %#x, %v", v, err)
	}
	if err := c.Memset(0, 16, 0xab); err != nil {
		t.Error(err)
	}
	if v, err := c.ClockStep(1500); v != 42000 || err != nil {
		t.Errorf("ClockStep = %v, %v", v, err)
	}
	if v, err := c.ClockStep(0); v != 43000 || err != nil {
		t.Errorf("ClockStep = %v, %v", v, err)
	}
	if v, err := c.ReadConfig(NewBDF(0, 5, 0), 0x12, 2); v != 0xbeef || err != nil {
		t.Errorf("ReadConfig = %#x, %v", v, err)
	}
	if _, err := c.ReadConfig(0, 0x11, 2); err == nil {
		t.Error("misaligned config access went out")
	}
	if _, err := c.Command("a\nb"); err == nil {
		t.Error("two lines in one command went out")
	}
}

func TestRefusalKeepsTheStream(t *testing.T) {
	c := serve(t,
		[2]string{"irq_intercept_in nowhere", "FAIL Unknown device\n"},
		[2]string{"readb 0x0", "OK 0x00\n"})
	var refused *Error
	if err := c.InterceptIn("nowhere"); !errors.As(err, &refused) || refused.Command != "irq_intercept_in" {
		t.Errorf("err = %v", err)
	}
	if _, err := c.Read8(0); err != nil {
		t.Error(err)
	}
}

func TestHostileAnswers(t *testing.T) {
	for name, answer := range map[string]string{
		"unknown word":     "HELLO\nOK 0x0\n",
		"glued":            "OKAY 1\nOK 0x0\n",
		"irq without line": "IRQ raise\nOK 0x0\n",
		"irq out of range": "IRQ raise 99999999\nOK 0x0\n",
		"irq negative":     "IRQ raise -1\nOK 0x0\n",
		"endless":          strings.Repeat("x", maxLine+8192) + "!",
		"cut":              "OK 0x1",
	} {
		t.Run(name, func(t *testing.T) {
			here, there := net.Pipe()
			defer here.Close()
			go func() {
				bufio.NewReader(there).ReadString('\n')
				io.WriteString(there, answer)
				there.Close()
			}()
			c := New(here)
			if v, err := c.Read8(0); err == nil {
				t.Fatalf("Read8 = %#x, want an error", v)
			}
			if _, err := c.Read8(0); err == nil {
				t.Error("the stream is used after it broke")
			}
		})
	}
	t.Run("wrong length", func(t *testing.T) {
		c := serve(t, [2]string{"b64read 0x0 0x4", "OK AQID\n"})
		if err := c.Read(0, make([]byte, 4)); err == nil {
			t.Error("3 bytes pass for 4")
		}
	})
	t.Run("no number", func(t *testing.T) {
		c := serve(t, [2]string{"readb 0x0", "OK zebra\n"})
		if _, err := c.Read8(0); err == nil {
			t.Error("zebra passes for a number")
		}
	})
}

func TestTimeout(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	go io.Copy(io.Discard, there)
	c := New(here)
	c.Timeout = 10 * time.Millisecond
	if _, err := c.Read8(0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
}

func TestIRQ(t *testing.T) {
	c := serve(t,
		[2]string{"irq_intercept_in ioapic", "OK\n"},
		[2]string{"writel 0x10 0x1", "IRQ raise 16\nIRQ raise 17\nIRQ lower 16\nOK\nIRQ raise 18\n"},
		[2]string{"readb 0x0", "OK 0x7\n"})
	if err := c.InterceptIn("ioapic"); err != nil {
		t.Fatal(err)
	}
	if err := c.Write32(0x10, 1); err != nil {
		t.Fatal(err)
	}
	if c.IRQ(16) || !c.IRQ(17) {
		t.Error("levels of 16 and 17 are wrong")
	}
	if err := c.WaitIRQ(t.Context(), 18, true); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.WaitIRQ(ctx, 19, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
	if v, err := c.Read8(0); v != 7 || err != nil {
		t.Errorf("after a wait that timed out: %#x, %v", v, err)
	}
}
