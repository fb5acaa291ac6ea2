// SPDX-License-Identifier: Apache-2.0

// Package layout names the places in the guest's file system that both the image's
// builder and the guest's first program know. It imports nothing, so that the latter
// stays small.
package layout

// ModuleDir holds the kernel modules, named so that they load in lexical order.
const ModuleDir = "lib/modules/toebox"
