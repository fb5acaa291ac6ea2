// SPDX-License-Identifier: Apache-2.0

// Command gen writes toebox.h into the current folder, which is vdev/abi.
package main
