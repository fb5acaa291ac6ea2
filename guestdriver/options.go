// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"net"
	"time"

	"toebox/vdev/abi"
)

// SetLinger sets what Close does with data not yet sent: sec < 0 sends it in
// the background, 0 discards it and resets the connection, > 0 sends it in the
// background for that long.
func (c *Conn) SetLinger(sec int) error {
	limit := ^uint64(0)
	if sec > 0 {
		limit = uint64(sec) * uint64(time.Second)
	}
	c.mu.Lock()
	was := c.linger
	c.linger = sec
	c.mu.Unlock()
	if was <= 0 && sec <= 0 {
		return nil
	}
	return c.set(abi.AttrLinger, limit)
}

// SetNoDelay turns Nagle's algorithm off (the default) or on.
func (c *Conn) SetNoDelay(noDelay bool) error { return c.set(abi.AttrNagle, scalarBool(!noDelay)) }

// SetKeepAlive turns keep-alive on or off.
func (c *Conn) SetKeepAlive(on bool) error { return c.set(abi.AttrKeepalive, scalarBool(on)) }

// SetKeepAlivePeriod sets the idle time and the interval of keep-alive.
func (c *Conn) SetKeepAlivePeriod(d time.Duration) error {
	if err := c.set(abi.AttrKeepaliveIdle, uint64(d)); err != nil {
		return err
	}
	return c.set(abi.AttrKeepaliveInterval, uint64(d))
}

// SetKeepAliveConfig sets all of keep-alive. As in package net a time or count
// of 0 means 15 s and 9, a negative one leaves what is set.
func (c *Conn) SetKeepAliveConfig(cfg net.KeepAliveConfig) error {
	if err := c.SetKeepAlive(cfg.Enable); err != nil || !cfg.Enable {
		return err
	}
	const defaultTime, defaultCount = 15 * time.Second, 9
	for _, o := range []struct {
		attr       abi.Attribute
		value, def int64
	}{
		{abi.AttrKeepaliveIdle, int64(cfg.Idle), int64(defaultTime)},
		{abi.AttrKeepaliveInterval, int64(cfg.Interval), int64(defaultTime)},
		{abi.AttrKeepaliveCount, int64(cfg.Count), defaultCount},
	} {
		if o.value < 0 {
			continue
		}
		if o.value == 0 {
			o.value = o.def
		}
		if err := c.set(o.attr, uint64(o.value)); err != nil {
			return err
		}
	}
	return nil
}

// SetReadBuffer sets the receive window.
func (c *Conn) SetReadBuffer(bytes int) error {
	return c.setBuffer(abi.AttrReceiveWindow, bytes)
}

// SetWriteBuffer sets how much the adapter fetches ahead.
func (c *Conn) SetWriteBuffer(bytes int) error {
	return c.setBuffer(abi.AttrSendBuffer, bytes)
}

func (c *Conn) setBuffer(attr abi.Attribute, bytes int) error {
	if c.isClosed() {
		return c.setError(errClosed)
	}
	return c.set(attr, uint64(bytes))
}

// SetUserTimeout bounds how long sent bytes may stay unacknowledged (RFC 5482);
// 0 leaves it to the protocol.
func (c *Conn) SetUserTimeout(d time.Duration) error { return c.set(abi.AttrUserTimeout, uint64(d)) }

// SetTOS sets the type of service of what is sent, or the traffic class (IPv6).
func (c *Conn) SetTOS(tos int) error { return c.set(abi.AttrTOS, uint64(tos)) }

// SetTTL sets the time to live of what is sent, or the hop limit (IPv6).
func (c *Conn) SetTTL(ttl int) error { return c.set(abi.AttrTTL, uint64(ttl)) }

func scalarBool(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// set sets a scalar attribute of the connection.
func (c *Conn) set(attr abi.Attribute, v uint64) error {
	if c.isClosed() {
		return c.opError("set", errClosed)
	}
	ctx, cancel := timeout(startTimeout)
	defer cancel()
	for {
		ln, id, err := c.awaitCarried(ctx)
		if err == nil {
			err = ln.a.SetScalar(ctx, id, attr, v)
		}
		if err == nil {
			c.note(attr, v)
		}
		if at, now, aerr := c.awaitCarried(ctx); aerr == nil && (now != id || at != ln) {
			continue // it was carried over meanwhile, perhaps without this
		}
		return c.opError("set", err)
	}
}

// note remembers an attribute that was set, for a life to come.
func (c *Conn) note(attr abi.Attribute, v uint64) {
	if !c.lane().a.opts.CarryOver {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.settings == nil {
		c.settings = settings{}
	}
	c.settings[attr] = v
}

func (c *Conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}
