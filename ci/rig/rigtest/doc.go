// SPDX-License-Identifier: Apache-2.0

// Package rigtest starts adapters and drivers within the process of a test, which
// fails if they do not end as they should.
package rigtest
