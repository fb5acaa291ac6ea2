// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"toebox/vdev/port"
)

// tapName is the interface of a Network, which has no other besides lo.
const tapName = "toebox0"

// Network is a network of the host's kernel with one adapter in it: a network
// namespace of its own, which has a tap device. Its addresses are those of nat.
type Network struct {
	mu     sync.Mutex
	closed bool
	ns     *os.File
	tap    *os.File
	six    bool // the kernel has IPv6
}

// ErrPrivilege is what New says when it may not make a namespace or a
// tap device; the text names the cure.
var ErrPrivilege = errors.New("no network namespace with a tap device for this user: run it as root, or let all users have /dev/net/tun (chmod 666) and user namespaces (sysctl user.max_user_namespaces)")

// New makes a network; Close ends it.
func New() (*Network, error) {
	n := &Network{}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		if n.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if n.tap, err = port.OpenTap(tapName); err != nil {
			return err
		}
		if err = setUp(tapName, netip.PrefixFrom(n.Gateway(), 24)); err == nil {
			n.six, err = addAddress6(tapName, gateway6(), 64)
		}
		return err
	})
	if err == nil {
		return n, nil
	}
	_ = n.Close()
	// No right to a namespace or none left, no right to a device or no driver of it.
	for _, refusal := range []error{unix.EPERM, unix.ENOSPC, unix.EACCES, unix.ENOENT, unix.ENODEV, unix.ENXIO} {
		if errors.Is(err, refusal) {
			return nil, fmt.Errorf("netns: %w (%w)", ErrPrivilege, err)
		}
	}
	return nil, fmt.Errorf("netns: %w", err)
}

// Try says whether New would do, by an error that is one of New's.
func Try() error {
	n, err := New()
	if err != nil {
		return err
	}
	return n.Close()
}

// setUp gives a tap device of the calling thread's namespace its address, and turns it
// and the loopback on.
func setUp(tap string, address netip.Prefix) error {
	for _, step := range []struct {
		name    string
		request uint
		flags   uint16
		address []byte
	}{
		{"lo", unix.SIOCSIFFLAGS, unix.IFF_UP, nil},
		{tap, unix.SIOCSIFADDR, 0, address.Addr().AsSlice()},
		{tap, unix.SIOCSIFNETMASK, 0, net.CIDRMask(address.Bits(), 32)},
		{tap, unix.SIOCSIFFLAGS, unix.IFF_UP, nil},
	} {
		ifr, err := unix.NewIfreq(step.name)
		if err != nil {
			return err
		}
		if step.address != nil {
			if err := ifr.SetInet4Addr(step.address); err != nil {
				return err
			}
		} else {
			ifr.SetUint16(step.flags)
		}
		if err := ioctl(step.request, ifr); err != nil {
			return fmt.Errorf("interface %s: %w", step.name, err)
		}
	}
	return nil
}

// onThread runs f on a thread that ends with it, so that f may change what
// threads have each.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocks: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// Do runs f on a thread in the namespace: sockets that f makes are there for good.
func (n *Network) Do(f func() error) error {
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return fmt.Errorf("netns: %w", err)
		}
		return f()
	})
}

// enter moves the calling thread into the namespace.
func (n *Network) enter() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return os.ErrClosed
	}
	return unix.Setns(int(n.ns.Fd()), unix.CLONE_NEWNET)
}

// Gateway is the kernel's address.
func (n *Network) Gateway() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 2, 2}) }

// Adapter is the adapter's address.
func (n *Network) Adapter() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 2, 15}) }

// Gateway6 is the kernel's IPv6 address; it is not valid if the kernel has none.
func (n *Network) Gateway6() netip.Addr {
	if !n.six {
		return netip.Addr{}
	}
	return gateway6()
}

func gateway6() netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 3: 2, 15: 2}) }

// Adapter6 is the adapter's IPv6 address.
func (n *Network) Adapter6() netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 3: 2, 15: 0x15}) }

// Options are the adapter's addresses as options of the network tap (device.ParseNet).
func (n *Network) Options() string {
	s := fmt.Sprintf("ip=%v/24,gw=%v", n.Adapter(), n.Gateway())
	if n.six {
		s += fmt.Sprintf(",ip=%v/64,gw=%v", n.Adapter6(), n.Gateway6())
	}
	return s
}

// duplicate is another descriptor of the tap device.
func (n *Network) duplicate() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fd, err := unix.FcntlInt(n.tap.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, fmt.Errorf("netns: %w", err)
	}
	return fd, nil
}

// Tap is the file of the tap device, a duplicate for the caller.
func (n *Network) Tap() (*os.File, error) {
	fd, err := n.duplicate()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), tapName), nil
}

// Net is the adapter's network as device.ParseNet reads it, once: it names a file
// descriptor that is the reader's from then on.
func (n *Network) Net() (string, error) {
	fd, err := n.duplicate()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("tap:fd=%d,%s", fd, n.Options()), nil
}

// Release gives up the tap device's file, so that somebody else can open the device,
// by the name that it returns, from the namespace, as long as that lasts.
func (n *Network) Release() (name string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := unix.IoctlSetInt(int(n.tap.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		return "", fmt.Errorf("netns: %w", err)
	}
	return tapName, n.tap.Close()
}

// Close gives up namespace and device, which end with the last socket and the
// adapter's port. It is idempotent.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	var errs []error
	for _, f := range []*os.File{n.ns, n.tap} {
		if f != nil {
			if err := f.Close(); !errors.Is(err, os.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
