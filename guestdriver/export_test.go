// SPDX-License-Identifier: Apache-2.0

package guestdriver

import "time"

// SetTimeout changes what bounds the commands and posts of a queue that is there. Nobody
// may use the queue meanwhile.
func (q *Queue) SetTimeout(d time.Duration) { q.cfg.Timeout = d }
