// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"toebox/images/toolchain/toolchaintest"
)

// Directions as pcapng's packet flags have them.
const (
	inbound  = 1
	outbound = 2
)

// Bits of the TCP header (RFC 9293).
const (
	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagPSH = 0x08
	flagACK = 0x10
)

// expertError is tshark's severity of what is wrong, not just remarkable.
const expertError = "8388608"

// packet is a packet as gopacket sees it.
type packet struct {
	direction uint64 // from the source address: gopacket does not show the file's
	source    net.HardwareAddr
	length    int
	from, to  netip.AddrPort // of TCP
	seq       uint32
	flags     uint64
	payload   []byte
}

// decode reads the file with gopacket.
func decode(t *testing.T, path string) []packet {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	var all []packet
	for {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("gopacket: packet %d: %v", len(all)+1, err)
		}
		d := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default)
		if e := d.ErrorLayer(); e != nil {
			t.Fatalf("gopacket: packet %d: %v", len(all)+1, e.Error())
		}
		if info.CaptureLength != info.Length {
			t.Errorf("packet %d is cut off: %d of %d bytes", len(all)+1, info.CaptureLength, info.Length)
		}
		p := packet{length: info.Length}
		if eth, ok := d.LinkLayer().(*layers.Ethernet); ok {
			p.source = eth.SrcMAC
		}
		if tcp, ok := d.TransportLayer().(*layers.TCP); ok {
			src, dst := d.NetworkLayer().NetworkFlow().Endpoints()
			p.from, p.to = endpoint(src, uint16(tcp.SrcPort)), endpoint(dst, uint16(tcp.DstPort))
			p.seq, p.payload = tcp.Seq, tcp.Payload
			for _, f := range []struct {
				on  bool
				bit uint64
			}{{tcp.FIN, flagFIN}, {tcp.SYN, flagSYN}, {tcp.RST, flagRST}, {tcp.PSH, flagPSH}, {tcp.ACK, flagACK}} {
				if f.on {
					p.flags |= f.bit
				}
			}
		}
		all = append(all, p)
	}
}

func endpoint(e gopacket.Endpoint, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(e.Raw())
	return netip.AddrPortFrom(a, port)
}

// shownPacket is a packet as tshark shows it.
type shownPacket struct {
	direction    uint64
	length       int
	stream       string // TCP conversation
	flags        uint64
	seq          uint64 // relative
	payload      int
	completeness uint64
}

// tshark is the program, without which the test is skipped.
func tshark(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("tshark")
	if err != nil {
		toolchaintest.Missing(t, "tshark", "no tshark (%v): apt-get install tshark", err)
	}
	return program
}

// show has tshark read the file. Whatever tshark finds wrong with a packet
// fails the test.
func show(t *testing.T, program, path string, ps []packet) []shownPacket {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	fields := []string{
		"frame.number", "frame.packet_flags_direction", "frame.len", "frame.cap_len", "frame.protocols",
		"tcp.stream", "tcp.flags", "tcp.seq", "tcp.len", "tcp.completeness",
		"ip.checksum.status", "tcp.checksum.status", "udp.checksum.status",
		"_ws.malformed", "_ws.malformed.expert", "_ws.unreassembled", "_ws.expert.severity",
		"tcp.analysis.lost_segment", "tcp.analysis.ack_lost_segment",
	}
	args := []string{
		"-r", path, "-2", "-n", "-Q", "-T", "fields", "-E", "separator=;", "-E", "occurrence=a", "-E", "aggregator=,",
		"-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
		"-o", "tcp.analyze_sequence_numbers:TRUE", "-o", "tcp.relative_sequence_numbers:TRUE", "-o", "tcp.try_heuristic_first:FALSE",
	}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	// The payload is random: it must not be taken for the protocol of a port
	// that the test happened to get.
	var ports []uint16
	for _, p := range ps {
		ports = append(ports, p.from.Port())
	}
	slices.Sort(ports)
	for _, p := range slices.Compact(ports) {
		if p != 0 {
			args = append(args, "-d", fmt.Sprintf("tcp.port==%d,data", p))
		}
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "WIRESHARK_CONFIG_DIR="+t.TempDir(), "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, stderr.Bytes())
	}
	var all []shownPacket
	for line := range strings.Lines(string(b)) {
		v := strings.Split(strings.TrimSuffix(line, "\n"), ";")
		if len(v) != len(fields) {
			t.Fatalf("tshark: line %q", line)
		}
		f := map[string]string{}
		for i, name := range fields {
			f[name] = v[i]
		}
		all = append(all, judge(t, f))
	}
	return all
}

// judge looks for what tshark finds wrong.
func judge(t *testing.T, f map[string]string) shownPacket {
	t.Helper()
	n := f["frame.number"]
	if slices.Contains(strings.Split(f["_ws.expert.severity"], ","), expertError) {
		t.Errorf("tshark: packet %s (%s): an error of the expert", n, f["frame.protocols"])
	}
	number := func(name string) uint64 {
		if f[name] == "" {
			return 0
		}
		v, err := strconv.ParseUint(f[name], 0, 64)
		if err != nil {
			t.Fatalf("tshark: packet %s: %s is %q", n, name, f[name])
		}
		return v
	}
	protocols := strings.Split(f["frame.protocols"], ":")
	has := func(name string) bool { return slices.Contains(protocols, name) }
	for name, protocol := range map[string]string{"ip.checksum.status": "ip", "tcp.checksum.status": "tcp", "udp.checksum.status": "udp"} {
		// 1 is good; 2 would mean that it was not looked at.
		if has(protocol) && f[name] != "1" {
			t.Errorf("tshark: packet %s: %s is %q", n, name, f[name])
		}
	}
	for _, name := range []string{"_ws.malformed", "_ws.malformed.expert", "_ws.unreassembled", "tcp.analysis.lost_segment", "tcp.analysis.ack_lost_segment"} {
		if f[name] != "" {
			t.Errorf("tshark: packet %s (%s): %s", n, f["frame.protocols"], name)
		}
	}
	if f["frame.len"] != f["frame.cap_len"] {
		t.Errorf("tshark: packet %s is cut off", n)
	}
	return shownPacket{
		direction: number("frame.packet_flags_direction"), length: int(number("frame.len")),
		stream: f["tcp.stream"], flags: number("tcp.flags") & (flagFIN | flagSYN | flagRST | flagPSH | flagACK),
		seq: number("tcp.seq"), payload: int(number("tcp.len")), completeness: number("tcp.completeness"),
	}
}
