// SPDX-License-Identifier: Apache-2.0

// Package deps names modules until their users exist.
package deps

import (
	_ "github.com/alecthomas/kong"
	_ "github.com/digitalocean/go-qemu/qmp"
	_ "github.com/google/gopacket"
	_ "github.com/google/gopacket/layers"
	_ "github.com/google/gopacket/pcapgo"
	_ "github.com/klauspost/compress/zstd"
	_ "github.com/u-root/gobusybox/src/pkg/golang"
	_ "github.com/u-root/mkuimage/cpio"
	_ "github.com/u-root/mkuimage/uimage"
	_ "github.com/u-root/u-root/pkg/kmodule"
	_ "github.com/ulikunitz/xz"
	_ "golang.org/x/net/dns/dnsmessage"
	_ "golang.org/x/sys/unix"
	_ "golang.org/x/term"
	_ "gvisor.dev/gvisor/pkg/tcpip/stack"
	_ "gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	_ "pgregory.net/rapid"
)
