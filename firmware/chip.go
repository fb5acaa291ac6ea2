// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/firmware/chip"

// What firmware and function say to each other.
type (
	// Chip is what the firmware needs of the function it runs on.
	Chip = chip.Chip
	// Config says what the firmware works with.
	Config = chip.Config
	// Route is an entry of the attribute ROUTES.
	Route = chip.Route
	// QueueConfig is what create takes from the queue's registers.
	QueueConfig = chip.QueueConfig
	// QueueStatus is what the queue's read-only registers show.
	QueueStatus = chip.QueueStatus
)
