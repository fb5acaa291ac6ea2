// SPDX-License-Identifier: Apache-2.0

package guestdriver

import (
	"fmt"
	"math"
	"time"

	"toebox/vdev/abi"
)

// A policy is a set of attributes that a connection has, and the adapter for
// connections to come. It is read, changed and set as a whole:
//
//	p, err := c.ReceivePolicy()
//	...
//	p.Bytes, p.Combine = 64<<10, true
//	err = c.SetReceivePolicy(p)
//
// Connections have what the adapter's policy was when they, or the listener that
// they arrived at, began. What was set is set again after a reset of the adapter,
// and of connections that are carried over.

// DelayCriteria are those by which the adapter judges that a connection has
// enough to send, so that more of its sends can wait in host memory (MM07).
type DelayCriteria uint8

// Criteria of SPEC.md §14.7. A connection has enough when one of them holds.
const (
	DelayWindow    DelayCriteria = 1 << iota // the congestion window is full
	DelayBandwidth                           // the bandwidth-delay product is on its way
	DelayMemory                              // adapter memory is three quarters full
	DelayFairness                            // it holds more than the mean of its queue pair
	DelayClass                               // one of a greater class has sends to fetch
)

// CompletionPoint is how far the bytes of a send have come when it completes (MM14).
type CompletionPoint uint8

// Completion points of SPEC.md §5.4. Before the first one bytes have no other place
// than the adapter: what it loses, in a reset or a fail-over, nobody can send again,
// though its send has completed. With Options.CarryOver connections are to survive
// that, so they take no other point than the first one.
const (
	PointAcknowledged CompletionPoint = iota // by the peer
	PointHanded                              // to the network
	PointRead                                // into adapter memory
)

// number is the value of the attribute.
func (p CompletionPoint) number() uint64 { return uint64(PointRead - p) }

// SendPolicy says which sends may wait in host memory, for how long, which
// the adapter keeps (SPEC.md §14.7, §14.8), and when they are complete.
type SendPolicy struct {
	Delay       DelayCriteria // 0: nothing waits
	Count       int           // sends that wait at most, from 1
	Bytes       int           // ... and their bytes, from 1
	Age         time.Duration // that they wait at most
	Dynamic     bool          // Count, Bytes and Age follow what the peer acknowledges
	ShortenASAP bool          // SendOptions.ASAP cuts the three to an eighth, instead of ending the wait
	Keep        bool          // the adapter keeps copies: SendOptions.Unchanged saves reading (MM10)

	// Complete is when a buffer that was sent comes back, and its memory, with
	// which a Write that went without a copy returns.
	Complete CompletionPoint
}

// pointOf is the point of a value of the attribute.
func pointOf(v uint64) CompletionPoint { return PointRead - CompletionPoint(v) }

// check says what of the policy does not go with the adapter's options.
func (p *SendPolicy) check(o *Options) error {
	if o.CarryOver && p.Complete != PointAcknowledged {
		return fmt.Errorf("what is not acknowledged must be kept for Options.CarryOver: %w",
			&AttributeError{"set", abi.AttrCompletionPoint, abi.StatusNotSupported})
	}
	return nil
}

func (p *SendPolicy) fields() []field {
	return []field{
		{abi.AttrDelayCriteria, &p.Delay}, {abi.AttrDelayCount, &p.Count}, {abi.AttrDelayBytes, &p.Bytes},
		{abi.AttrDelayAge, &p.Age}, {abi.AttrDelayDynamic, &p.Dynamic}, {abi.AttrASAPMode, &p.ShortenASAP},
		{abi.AttrKeepSends, &p.Keep}, {abi.AttrCompletionPoint, &p.Complete},
	}
}

// NotifyInputs are what a delay of received bytes can set itself by (RX02-RX05).
type NotifyInputs uint8

// Inputs of SPEC.md §14.6.
const (
	NotifyArrivals    NotifyInputs = 1 << iota // rate, amount and bursts of what arrives
	NotifyPosts                                // how often the host posts buffers
	NotifyConsumption                          // how soon after a notification it does
	NotifyAmounts                              // how much arrived at a time
)

// ReceivePolicy says how long received bytes may wait for more, and how what goes
// to the host is gathered (SPEC.md §14.6). Of Time and Bytes the first that is met
// ends a wait.
type ReceivePolicy struct {
	Time      time.Duration // after the first byte (RX01); 0: not by time
	Bytes     int           // (RX05); 0: not by amount
	Dynamic   NotifyInputs  // in the place of Time and Bytes
	Max       time.Duration // bounds each wait (RX06); 0: nothing waits
	Expedited bool          // nothing waits, and it comes before other connections

	// Combine has one response report a run of buffers that were posted one
	// behind the other, in adjacent memory and with nothing between them (RX12).
	// Completions stay one for each.
	Combine bool

	// Buffers of at least Gather bytes are filled TransferSize bytes at a time
	// (MM08); Gather 0: as segments come.
	TransferSize, Gather int
}

func (p *ReceivePolicy) fields() []field {
	return []field{
		{abi.AttrLinkTransferSize, &p.TransferSize}, {abi.AttrGatherThreshold, &p.Gather},
		{abi.AttrNotifyTime, &p.Time}, {abi.AttrNotifyBytes, &p.Bytes}, {abi.AttrNotifyDynamic, &p.Dynamic},
		{abi.AttrNotifyMax, &p.Max}, {abi.AttrExpedited, &p.Expedited}, {abi.AttrCombine, &p.Combine},
	}
}

// Schedule says when a connection's turn to move bytes comes, in both directions
// (MM12; SPEC.md §14.3).
type Schedule struct {
	Priority   int           // 0 to 7, which comes first; 3 unless set
	Class      int           // of quality of service, 0 to 255
	Starvation time.Duration // after which a turn comes whatever others have
}

func (p *Schedule) fields() []field {
	return []field{{abi.AttrPriority, &p.Priority}, {abi.AttrQoSClass, &p.Class}, {abi.AttrStarvation, &p.Starvation}}
}

// Stores are those by which received bytes are written to host memory.
type Stores uint8

// Stores of SPEC.md §14.13.
const (
	StoresOrdinary    Stores = iota // they may leave bytes in a cache that the host shares
	StoresNonTemporal               // they go past it
	StoresByClass                   // ordinary if Schedule.Class is not 0
	StoresAdaptive                  // ordinary as long as Placement.Budget lasts
)

// Placement says where received bytes are left (RX11).
type Placement struct {
	Stores Stores
	Budget int // bytes that StoresAdaptive leaves in the cache in two milliseconds
}

func (p *Placement) fields() []field {
	return []field{{abi.AttrPlacement, &p.Stores}, {abi.AttrPlacementBudget, &p.Budget}}
}

// field is a place in a policy and the attribute that it stands for.
type field struct {
	attr abi.Attribute
	at   any // a pointer to one of the types of value
}

// value returns the attribute that the place says; false if there is none.
func (f field) value() (v uint64, ok bool) {
	switch at := f.at.(type) {
	case *bool:
		return scalarBool(*at), true
	case *int:
		return uint64(*at), *at >= 0
	case *time.Duration:
		return uint64(*at), *at >= 0
	case *DelayCriteria:
		return uint64(*at), true
	case *NotifyInputs:
		return uint64(*at), true
	case *Stores:
		return uint64(*at), true
	case *Choice:
		return uint64(*at), true
	case *PoolMatch:
		return at.value()
	case *CompletionPoint:
		if *at > PointRead {
			return uint64(*at), false
		}
		return at.number(), true
	}
	return 0, false
}

// put sets the place to what the adapter said; false if that is no such thing.
func (f field) put(v uint64) bool {
	switch at := f.at.(type) {
	case *bool:
		*at = v != 0
		return v <= 1
	case *int:
		*at = int(v)
		return v <= math.MaxInt64
	case *time.Duration:
		*at = time.Duration(v)
		return v <= math.MaxInt64
	case *DelayCriteria:
		*at = DelayCriteria(v)
		return v <= math.MaxUint8
	case *NotifyInputs:
		*at = NotifyInputs(v)
		return v <= math.MaxUint8
	case *Stores:
		*at = Stores(v)
		return v <= math.MaxUint8
	case *Choice:
		*at = Choice(v)
		return v <= math.MaxUint8
	case *PoolMatch:
		return at.put(v)
	case *CompletionPoint:
		*at = pointOf(v)
		return v <= PointAcknowledged.number()
	}
	return false
}
