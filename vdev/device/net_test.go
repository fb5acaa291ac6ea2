// SPDX-License-Identifier: Apache-2.0

package device

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inherited returns the number of a duplicate of l's file descriptor, as a
// parent would pass it.
func inherited(t *testing.T, l interface{ File() (*os.File, error) }) int {
	t.Helper()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestParseNet(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	unixSocket, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer unixSocket.Close()
	good := fmt.Sprintf("fwd-fd=%d-:80", inherited(t, tcp.(*net.TCPListener)))

	for _, c := range []struct {
		in, mode string
		guests   []string
		err      string
	}{
		{in: "none"},
		{in: "nat", mode: "nat"},
		{in: "nat:", mode: "nat"},
		{in: "nat:" + good, mode: "nat", guests: []string{"invalid AddrPort"}},
		{in: "nat:fwd=tcp:127.0.0.1:0-10.0.2.15:81,fwd=tcp:[::1]:0-[fd00:2::15]:82", mode: "nat", guests: []string{"10.0.2.15:81", "[fd00:2::15]:82"}},
		{in: "nat:fwd=udp:127.0.0.1:0-10.0.2.15:83", mode: "nat", guests: []string{"10.0.2.15:83"}},

		{in: "", err: "neither none, nat nor tap"},
		{in: "NAT", err: "neither none, nat nor tap"},
		{in: "none:fwd=tcp:127.0.0.1:0-:80", err: "no options"},
		{in: "tap", err: "needs if= or fd="},
		{in: "tap:if=a,fd=3,ip=10.9.0.2/24", err: "not both"},
		{in: "tap:if=a", err: "needs ip="},
		{in: "tap:if=a,ip=10.9.0.2", err: "is no address with a prefix length"},
		{in: "tap:if=a,ip=10.9.0.2/24,ip=fd00:9::2/x", err: "is no address with a prefix length"},
		{in: "tap:if=a,ip=10.9.0.2/24,gw=fd00:9::1", err: "is in none of its networks"},
		{in: "tap:if=a,ip=10.9.0.2/24,gw=10.8.0.1", err: "is in none of its networks"},
		{in: "tap:if=a,ip=10.9.0.2/24,gw=x", err: "gw"},
		{in: "tap:if=a,ip=10.9.0.2/24,dns=x", err: "dns"},
		{in: "tap:if=a,ip=10.9.0.2/24,mtu=x", err: "mtu"},
		{in: "tap:if=a,ip=10.9.0.2/24,mtu=1000", err: "not between 1280 and 65535"},
		{in: "tap:if=a,ip=10.9.0.2/24,fwd=1-:80", err: "is no option"},
		{in: "tap:if=0123456789abcdef,ip=10.9.0.2/24", err: "is no name of an interface"},
		{in: fmt.Sprintf("tap:fd=%d,ip=10.9.0.2/24", inherited(t, unixSocket)), err: "port: tap"},
		{in: "tap:fd=2,ip=10.9.0.2/24", err: "no number"},

		{in: "nat:,", err: "is no forward"},
		{in: "nat:bogus=1-:80", err: "is no forward"},
		{in: "nat:fwd", err: "is no forward"},
		{in: "nat:fwd=tcp:127.0.0.1:0", err: "is no forward"},
		{in: "nat:fwd=tcp:127.0.0.1:0-", err: "guest address"},
		{in: "nat:fwd=tcp:127.0.0.1:0-80", err: "guest address"},
		{in: "nat:fwd=tcp:127.0.0.1:0-:0", err: "not between 1 and 65535"},
		{in: "nat:fwd=tcp:127.0.0.1:0-:65536", err: "not between 1 and 65535"},
		{in: "nat:fwd=tcp:127.0.0.1:0-:-1", err: "not between 1 and 65535"},
		{in: "nat:fwd=tcp:127.0.0.1:0-host:80", err: "guest address"},
		{in: "nat:fwd=sctp:127.0.0.1:0-:80", err: "has no prefix"},
		{in: "nat:fwd=udp:localhost:0-:80", err: "host address"},
		{in: "nat:fwd=udp:127.0.0.1:0-:80,bogus", err: "is no forward"},
		{in: "nat:fwd=tcp:localhost:0-:80", err: "host address"},
		{in: "nat:fwd=tcp:127.0.0.1:0-:80,fwd=tcp:" + tcp.Addr().String() + "-:80", err: "address already in use"},
		{in: "nat:fwd-fd=2-:80", err: "no number"},
		{in: "nat:fwd-fd=-3-:80", err: "guest address"},
		{in: "nat:fwd-fd=x-:80", err: "no number"},
		{in: "nat:fwd-fd=65535-:80", err: "bad file descriptor"},
		{in: "nat:fwd-fd=99999999999999999999-:80", err: "no number"},
		{in: fmt.Sprintf("nat:fwd-fd=%d-:80", inherited(t, unixSocket)), err: "no TCP socket"},
	} {
		n, err := ParseNet(c.in)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || len(n.Forwards) != 0 {
				t.Errorf("%s: %v, want %q", c.in, err, c.err)
			}
			continue
		}
		if err != nil || n.Mode != c.mode || len(n.Forwards) != len(c.guests) {
			t.Errorf("%s: %+v, %v", c.in, n, err)
		}
		for i, f := range n.Forwards {
			if got := f.Guest.String(); got != c.guests[i] && f.Guest.Addr().IsValid() || f.Guest.Port() < 80 {
				t.Errorf("%s: guest %s, want %s", c.in, got, c.guests[i])
			}
			f.close()
		}
	}
}
