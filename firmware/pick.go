// SPDX-License-Identifier: Apache-2.0

package firmware

import "toebox/vdev/abi"

// pick chooses the buffer that the next bytes of c go to: its own in the order
// posted, else a bulk buffer of the queue in the order posted (RX07); nil: there
// is none.
func (q *queue) pick(c *conn) *request {
	if r := c.buffers.front; r != nil {
		return r
	}
	return q.pool.front
}

// countDelivery counts a delivery of c into r.
func (q *queue) countDelivery(_ *conn, r *request) {
	if r.conn == nil {
		q.count(abi.CounterPoolDeliveries, 1)
		return
	}
	q.count(abi.CounterOwnDeliveries, 1)
}
