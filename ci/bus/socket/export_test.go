// SPDX-License-Identifier: Apache-2.0

package socket

// Drop ends the connection without a word to the device.
func (b *Bus) Drop() { b.client.Close() }
