// SPDX-License-Identifier: Apache-2.0

// Command guest is a driver for "toebox test --bus vm --driver": the packages of
// guestdriver behind the line protocol of DRIVER.md. It owns the adapter that
// $TOEBOX_BDF names from the operation "reset" to the next one, or to its end.
package main
