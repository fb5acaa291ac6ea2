// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"toebox/ci/netns"
	"toebox/ci/netns/netnstest"
	"toebox/firmware/engine"
	"toebox/vdev/device"
	"toebox/vfio-user/vfiousertest"
)

func TestMain(m *testing.M) { vfiousertest.Main(m) }

// tapName is the interface of a network.
const tapName = "toebox0"

// network is a network of the test's own.
func network(t *testing.T) *netns.Network {
	t.Helper()
	n, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := n.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if text, err := n.Net(); err == nil {
			t.Errorf("after Close: %s", text)
		}
	})
	return n
}

// TestNetwork: the kernel answers over the tap device from a namespace that this
// process's other threads do not see, until the interface is down.
func TestNetwork(t *testing.T) {
	if !netnstest.Here(t) {
		return
	}
	n := network(t)
	text, err := n.Net()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := device.ParseNet(text)
	if err != nil {
		t.Fatal(err)
	}
	tap := parsed.Tap
	defer tap.Close()
	answer := make(chan []byte, 64)
	tap.Attach(func(frames []engine.Frame) {
		for i := range frames {
			b := bytes.Join(frames[i].Data, nil)
			if len(b) >= 42 && b[12] == 8 && b[13] == 6 && b[21] == 2 { // ARP, reply
				select {
				case answer <- b:
				default:
				}
			}
		}
	})
	ask := []byte{
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0x15, 8, 6, // to all, from the adapter: ARP
		0, 1, 8, 0, 6, 4, 0, 1, // Ethernet, IPv4, request
		2, 0, 0, 0, 0, 0x15, 10, 0, 2, 15, // who asks
		0, 0, 0, 0, 0, 0, 10, 0, 2, 2, // who is wanted
	}
	if k := tap.Transmit([]engine.Frame{{Data: [][]byte{ask}}}); k != 1 {
		t.Fatalf("the kernel took %d frames: %+v", k, tap.Stats())
	}
	select {
	case b := <-answer:
		if !bytes.Equal(b[28:32], []byte{10, 0, 2, 2}) || !bytes.Equal(b[38:42], []byte{10, 0, 2, 15}) {
			t.Errorf("answer %x", b)
		}
	case <-time.After(time.Minute):
		t.Fatalf("no answer: %+v", tap.Stats())
	}

	if _, err := net.InterfaceByName(tapName); err == nil {
		t.Error("the device is in the namespace of the process")
	}
	var here *net.Interface
	if err := n.Do(func() (err error) { here, err = net.InterfaceByName(tapName); return err }); err != nil || here.Flags&net.FlagUp == 0 {
		t.Errorf("in its own namespace: %v, %v", here, err)
	}
	if err := n.Do(func() error { return flags(tapName, 0) }); err != nil {
		t.Fatal(err)
	}
	if k := tap.Transmit([]engine.Frame{{Data: [][]byte{ask}}}); k != 0 || tap.Stats().DroppedRefused != 1 {
		t.Errorf("an interface that is down took %d frames: %+v", k, tap.Stats())
	}
}

// flags sets an interface's.
func flags(name string, v uint16) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(v)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}
