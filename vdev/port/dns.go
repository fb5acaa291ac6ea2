// SPDX-License-Identifier: Apache-2.0

package port

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// DNS message layout, RFC 1035 section 4.1.1. Numbers are big-endian.
const (
	dnsHeader   = 12
	dnsFlagsHi  = 2 // QR, opcode, AA, TC, RD
	dnsFlagsLo  = 3 // RA, Z, AD, CD, rcode
	dnsQR       = 0x80
	dnsRD       = 0x01
	dnsOpcode   = 0x78
	dnsRA       = 0x80
	dnsServFail = 2
)

// Our tunables.
const (
	// maxQueries bounds the queries under way.
	maxQueries = 256
	// maxResolvers is the number of nameservers looked at, as in the C
	// library (MAXNS).
	maxResolvers = 3
	// maxResolvConf bounds what is read of the file, bytes.
	maxResolvConf = 64 << 10
)

// errNoResolver says that the host knows no nameserver.
var errNoResolver = errors.New("port: no resolver")

// resolvConf knows the host's resolvers.
type resolvConf struct {
	path  string
	fixed []netip.AddrPort // when not nil, path is not read

	mu       sync.Mutex
	modified time.Time
	size     int64
	servers  []netip.AddrPort
}

// list returns the resolvers; the file is read again when it has changed.
func (r *resolvConf) list() []netip.AddrPort {
	if r.fixed != nil {
		return r.fixed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	st, err := os.Stat(r.path)
	if err != nil || !st.Mode().IsRegular() {
		return nil
	}
	if r.servers == nil || !st.ModTime().Equal(r.modified) || st.Size() != r.size {
		f, err := os.Open(r.path)
		if err != nil {
			return nil
		}
		defer f.Close()
		r.servers = parseResolvConf(io.LimitReader(f, maxResolvConf))
		r.modified, r.size = st.ModTime(), st.Size()
	}
	return r.servers
}

// parseResolvConf reads the nameserver lines of resolv.conf(5).
func parseResolvConf(r io.Reader) []netip.AddrPort {
	out := []netip.AddrPort{}
	for s := bufio.NewScanner(r); s.Scan() && len(out) < maxResolvers; {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, dnsPort))
		}
	}
	return out
}

// serveDNS answers queries to one address of the gateway by asking the host's
// resolvers. Messages pass unread but for their header.
func (n *NAT) serveDNS(a netip.Addr) error {
	s, err := n.listenUDP(netip.AddrPortFrom(a, dnsPort))
	if err != nil {
		return err
	}
	running := make(chan struct{}, maxQueries)
	return s.serve(func(b []byte, from tcpip.FullAddress) {
		n.stats.DNSQueries.Add(1)
		if !isQuery(b) {
			n.stats.DNSDropped.Add(1)
			return
		}
		select {
		case running <- struct{}{}:
		default:
			n.stats.DNSDropped.Add(1) // the client asks again
			return
		}
		if !n.enter(nil) {
			return
		}
		q := append([]byte(nil), b...)
		go func() {
			defer n.leave(nil)
			defer func() { <-running }()
			r, err := n.ask(q)
			if err != nil {
				n.stats.DNSFailures.Add(1)
				r = servFail(q)
			} else {
				n.stats.DNSAnswers.Add(1)
			}
			s.send(r, from)
		}()
	})
}

func isQuery(b []byte) bool { return len(b) >= dnsHeader && b[dnsFlagsHi]&dnsQR == 0 }

// servFail answers a query by SERVFAIL, without its question: RFC 1035 does
// not ask for it when the query was not looked at.
func servFail(q []byte) []byte {
	r := make([]byte, dnsHeader)
	copy(r, q[:2])
	r[dnsFlagsHi] = dnsQR | q[dnsFlagsHi]&(dnsOpcode|dnsRD)
	r[dnsFlagsLo] = dnsRA | dnsServFail
	return r
}

// ask passes a query to the resolvers in turn until one answers.
func (n *NAT) ask(q []byte) ([]byte, error) {
	err := errNoResolver
	for _, to := range n.conf.list() {
		var r []byte
		if r, err = n.askOne(q, to); err == nil {
			return r, nil
		}
		if n.ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// askOne asks one resolver, from a socket of its own, so that the kernel picks
// an unpredictable port and takes answers of that resolver only.
func (n *NAT) askOne(q []byte, to netip.AddrPort) ([]byte, error) {
	c, err := n.dial("udp", to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(n.ctx, func() { c.Close() })()
	defer n.cfg.Clock.AfterFunc(n.cfg.QueryTimeout, func() { c.SetDeadline(time.Unix(1, 0)) }).Stop()
	if _, err := c.Write(q); err != nil {
		return nil, err
	}
	buf := n.datagrams.take()
	defer n.datagrams.Put(buf)
	for {
		k, err := c.Read(*buf)
		if err != nil {
			return nil, err
		}
		r := (*buf)[:k]
		if k >= dnsHeader && r[0] == q[0] && r[1] == q[1] && r[dnsFlagsHi]&dnsQR != 0 {
			return append([]byte(nil), r...), nil
		}
	}
}

// dialResolver opens a connection for DNS over TCP (RFC 7766) to the first
// resolver that takes one.
func (n *NAT) dialResolver() (net.Conn, error) {
	n.stats.DNSQueries.Add(1)
	err := errNoResolver
	for _, to := range n.conf.list() {
		var c net.Conn
		if c, err = n.dial("tcp", to); err == nil {
			n.stats.DNSAnswers.Add(1)
			return c, nil
		}
	}
	n.stats.DNSFailures.Add(1)
	return nil, err
}
