// SPDX-License-Identifier: Apache-2.0

// Package capture has the adapter's capture read by those it is made for. Its
// test runs connections through the driver, the whole adapter and its nat port,
// records the frames as pcapng, and has gopacket and tshark read the file: the
// two must agree with each other, packet for packet, and with what was sent.
//
// Without tshark the test is skipped; CI_REQUIRE=tshark makes that a failure.
package capture
