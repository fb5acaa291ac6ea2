// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"math"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Limits of option values, after Linux where it has some.
const (
	maxKeepAliveTime  = 32767 * time.Second
	maxKeepAliveCount = 127
	maxUserTimeout    = math.MaxInt32 * time.Millisecond
	maxLinger         = math.MaxUint16 * time.Second
	// windowShare is the part of a receive buffer that the stack advertises:
	// a half.
	windowShare = 2
)

// SetOption changes a setting of a connection or listener. Accepted
// connections inherit the receive window and the user timeout.
func (c *conn) SetOption(o Option, v int64) error {
	so := c.ep.SocketOptions()
	switch o {
	case OptSendBuffer:
		if v < minBuffer || v > maxBuffer {
			return ErrBadOption
		}
		c.setSendBuffer(v)
	case OptReceiveWindow:
		if v < minBuffer/windowShare || v > maxBuffer/windowShare {
			return ErrBadOption
		}
		so.SetReceiveBufferSize(v*windowShare, true)
	case OptNoDelay:
		if v != 0 && v != 1 {
			return ErrBadOption
		}
		so.SetDelayOption(v == 0)
	case OptKeepAlive:
		if v != 0 && v != 1 {
			return ErrBadOption
		}
		so.SetKeepAlive(v == 1)
	case OptKeepAliveIdle:
		t := tcpip.KeepaliveIdleOption(v)
		return c.setTime(v, maxKeepAliveTime, &t)
	case OptKeepAliveInterval:
		t := tcpip.KeepaliveIntervalOption(v)
		return c.setTime(v, maxKeepAliveTime, &t)
	case OptKeepAliveCount:
		if v < 1 || v > maxKeepAliveCount {
			return ErrBadOption
		}
		return fromStack(c.ep.SetSockOptInt(tcpip.KeepaliveCountOption, int(v)))
	case OptUserTimeout:
		t := tcpip.TCPUserTimeoutOption(v)
		if v == 0 { // none
			return fromStack(c.ep.SetSockOpt(&t))
		}
		return c.setTime(v, maxUserTimeout, &t)
	case OptSACK:
		return c.setSACK(v)
	case OptLinger:
		if v > int64(maxLinger) {
			return ErrBadOption
		}
		so.SetLinger(tcpip.LingerOption{Enabled: v >= 0, Timeout: time.Duration(max(v, 0))})
	case OptCongestion:
		if v != 0 {
			return ErrNotSupported
		}
	default:
		return c.setCommon(o, v)
	}
	return nil
}

func (c *conn) setTime(v int64, most time.Duration, o tcpip.SettableSocketOption) error {
	if v <= 0 || v > int64(most) {
		return ErrBadOption
	}
	return fromStack(c.ep.SetSockOpt(o))
}

// setSACK works for connections that are opened from here: what a listener
// answers is the stack's one setting.
func (c *conn) setSACK(v int64) error {
	switch {
	case v != 0 && v != 1:
		return ErrBadOption
	case c.phase.Load() != phaseIdle:
		if v == 0 {
			return ErrNotSupported
		}
		return nil
	case v == 0:
		c.ep.SetOwner(withoutSACK{})
	default:
		c.ep.SetOwner(nil)
	}
	c.noSACK.Store(v == 0)
	return nil
}

// Option reads a setting.
func (c *conn) Option(o Option) (int64, error) {
	so := c.ep.SocketOptions()
	switch o {
	case OptReceiveWindow:
		return so.GetReceiveBufferSize() / windowShare, nil
	case OptNoDelay:
		return flag(!so.GetDelayOption()), nil
	case OptKeepAlive:
		return flag(so.GetKeepAlive()), nil
	case OptKeepAliveIdle:
		var t tcpip.KeepaliveIdleOption
		terr := c.ep.GetSockOpt(&t)
		return int64(t), fromStack(terr)
	case OptKeepAliveInterval:
		var t tcpip.KeepaliveIntervalOption
		terr := c.ep.GetSockOpt(&t)
		return int64(t), fromStack(terr)
	case OptKeepAliveCount:
		n, terr := c.ep.GetSockOptInt(tcpip.KeepaliveCountOption)
		return int64(n), fromStack(terr)
	case OptUserTimeout:
		var t tcpip.TCPUserTimeoutOption
		terr := c.ep.GetSockOpt(&t)
		return int64(t), fromStack(terr)
	case OptSACK:
		return flag(!c.noSACK.Load()), nil
	case OptLinger:
		l := so.GetLinger()
		if !l.Enabled {
			return -1, nil
		}
		return int64(l.Timeout), nil
	case OptCongestion:
		return 0, nil
	}
	return c.common(o)
}

// setCommon changes what all endpoints have.
func (e *endpoint) setCommon(o Option, v int64) error {
	switch o {
	case OptSendBuffer:
		if v < minBuffer || v > maxBuffer {
			return ErrBadOption
		}
		e.ep.SocketOptions().SetSendBufferSize(v, true)
		return nil
	case OptTOS:
		if v < 0 || v > math.MaxUint8 {
			return ErrBadOption
		}
		if v&3 != 0 {
			return ErrNotSupported // congestion notification, RFC 3168
		}
		return fromStack(e.ep.SetSockOptInt(e.tosOption(), int(v)))
	case OptTTL:
		if v < 1 || v > math.MaxUint8 {
			return ErrBadOption
		}
		return fromStack(e.ep.SetSockOptInt(e.ttlOption(), int(v)))
	}
	return ErrNotSupported
}

func (e *endpoint) common(o Option) (int64, error) {
	switch o {
	case OptSendBuffer:
		return e.ep.SocketOptions().GetSendBufferSize(), nil
	case OptTOS:
		v, terr := e.ep.GetSockOptInt(e.tosOption())
		return int64(v), fromStack(terr)
	case OptTTL:
		v, terr := e.ep.GetSockOptInt(e.ttlOption())
		if v <= 0 {
			v = defaultTTL // not set: what the stack then uses
		}
		return int64(v), fromStack(terr)
	}
	return 0, ErrNotSupported
}

// defaultTTL is the stack's.
const defaultTTL = 64

func (e *endpoint) tosOption() tcpip.SockOptInt {
	if e.v6 {
		return tcpip.IPv6TrafficClassOption
	}
	return tcpip.IPv4TOSOption
}

func (e *endpoint) ttlOption() tcpip.SockOptInt {
	if e.v6 {
		return tcpip.IPv6HopLimitOption
	}
	return tcpip.IPv4TTLOption
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
