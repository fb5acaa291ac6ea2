// SPDX-License-Identifier: Apache-2.0

//go:build tools

package initramfs

// Never built: it keeps u-root, whose version and hash Base reads, in go.mod.
import _ "github.com/u-root/u-root/cmds/core/ls"
