// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// addAddress6 gives an interface of the calling thread's namespace an IPv6 address,
// which is good at once: nobody else there could have it. It says whether the kernel
// has IPv6.
func addAddress6(name string, address netip.Addr, bits int) (has bool, err error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return false, err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return false, err
	}
	if err := ioctl(unix.SIOCGIFINDEX, ifr); err != nil {
		return false, err
	}
	if err := unix.Sendto(s, newAddress6(ifr.Uint32(), address, bits), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0) // the kernel answers before Sendto returns
	if err != nil {
		return false, err
	}
	switch err := acknowledged(answer[:n]); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EACCES):
		return false, nil // built, or started, without
	default:
		return false, fmt.Errorf("address %v: %w", address, err)
	}
}

// newAddress6 is RTM_NEWADDR for an IPv6 address (rtnetlink(7)).
func newAddress6(index uint32, address netip.Addr, bits int) []byte {
	const length = unix.SizeofNlMsghdr + unix.SizeofIfAddrmsg + unix.SizeofRtAttr + 16
	b := make([]byte, 0, length)
	b = binary.NativeEndian.AppendUint32(b, length)
	b = binary.NativeEndian.AppendUint16(b, unix.RTM_NEWADDR)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	b = binary.NativeEndian.AppendUint32(b, 1)                                         // sequence number
	b = binary.NativeEndian.AppendUint32(b, 0)                                         // port of the kernel
	b = append(b, unix.AF_INET6, byte(bits), unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE) // struct ifaddrmsg
	b = binary.NativeEndian.AppendUint32(b, index)
	b = binary.NativeEndian.AppendUint16(b, unix.SizeofRtAttr+16)
	b = binary.NativeEndian.AppendUint16(b, unix.IFA_ADDRESS)
	a := address.As16()
	return append(b, a[:]...)
}

// acknowledged reads the kernel's answer to one request.
func acknowledged(b []byte) error {
	if len(b) < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("no answer: %x", b)
	}
	if code := int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// ioctl makes a request about an interface.
func ioctl(request uint, ifr *unix.Ifreq) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.IoctlIfreq(s, request, ifr)
}
