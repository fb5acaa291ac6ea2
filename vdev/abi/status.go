// SPDX-License-Identifier: Apache-2.0

package abi

import "strconv"

// Status is the result of a request or a tuple (SPEC.md §8).
type Status uint16

// Status codes.
const (
	StatusOK               Status = 0
	StatusPartial          Status = 1 // some tuples failed
	StatusCancelled        Status = 2 // by a cancellation, drain, or orderly stop
	StatusTimedOut         Status = 3 // limit reached, or the peer does not answer
	StatusRefused          Status = 4 // the peer refused the connection
	StatusReset            Status = 5 // the peer reset it
	StatusHostUnreachable  Status = 6
	StatusNetUnreachable   Status = 7
	StatusAddressInUse     Status = 8
	StatusBadAddress       Status = 9 // not an address of the adapter, or of the wrong family
	StatusNoPorts          Status = 10
	StatusNoMemory         Status = 11 // adapter memory, or a limit of connections, is exhausted
	StatusClosed           Status = 12 // terminated by the host, or the direction was
	StatusEndOfStream      Status = 13
	StatusAborted          Status = 14 // by the adapter
	StatusTooLate          Status = 15
	StatusNotSupported     Status = 16
	StatusTruncated        Status = 17
	StatusBadType          Status = 32
	StatusReserved         Status = 33 // a reserved bit or field is set
	StatusBadTag           Status = 34
	StatusTagInUse         Status = 35
	StatusBadConnection    Status = 36
	StatusWrongQueue       Status = 37
	StatusBadLength        Status = 38
	StatusBadMemory        Status = 39 // not mapped, or not for this access
	StatusBadAlignment     Status = 40
	StatusBadControlBuffer Status = 41
	StatusBadProtocol      Status = 42
	StatusBadState         Status = 43 // e.g. a send before the connection is established
	StatusBadMode          Status = 44
	StatusUnknownAttribute Status = 48
	StatusReadOnly         Status = 49
	StatusWrongDirection   Status = 50
	StatusShortBuffer      Status = 51
	StatusBadValue         Status = 52
	StatusQueueBusy        Status = 64
	StatusNotRunning       Status = 65
	StatusBadVector        Status = 66
	StatusBadSize          Status = 67
	StatusOverlap          Status = 68
	StatusBadOwner         Status = 69
	StatusBadCommand       Status = 70
)

// String returns the name of SPEC.md §8.
func (s Status) String() string {
	switch s {
	case StatusOK:
		return "OK"
	case StatusPartial:
		return "PARTIAL"
	case StatusCancelled:
		return "CANCELLED"
	case StatusTimedOut:
		return "TIMED_OUT"
	case StatusRefused:
		return "REFUSED"
	case StatusReset:
		return "RESET"
	case StatusHostUnreachable:
		return "HOST_UNREACHABLE"
	case StatusNetUnreachable:
		return "NET_UNREACHABLE"
	case StatusAddressInUse:
		return "ADDRESS_IN_USE"
	case StatusBadAddress:
		return "BAD_ADDRESS"
	case StatusNoPorts:
		return "NO_PORTS"
	case StatusNoMemory:
		return "NO_MEMORY"
	case StatusClosed:
		return "CLOSED"
	case StatusEndOfStream:
		return "END_OF_STREAM"
	case StatusAborted:
		return "ABORTED"
	case StatusTooLate:
		return "TOO_LATE"
	case StatusNotSupported:
		return "NOT_SUPPORTED"
	case StatusTruncated:
		return "TRUNCATED"
	case StatusBadType:
		return "BAD_TYPE"
	case StatusReserved:
		return "RESERVED"
	case StatusBadTag:
		return "BAD_TAG"
	case StatusTagInUse:
		return "TAG_IN_USE"
	case StatusBadConnection:
		return "BAD_CONNECTION"
	case StatusWrongQueue:
		return "WRONG_QUEUE"
	case StatusBadLength:
		return "BAD_LENGTH"
	case StatusBadMemory:
		return "BAD_MEMORY"
	case StatusBadAlignment:
		return "BAD_ALIGNMENT"
	case StatusBadControlBuffer:
		return "BAD_CONTROL_BUFFER"
	case StatusBadProtocol:
		return "BAD_PROTOCOL"
	case StatusBadState:
		return "BAD_STATE"
	case StatusBadMode:
		return "BAD_MODE"
	case StatusUnknownAttribute:
		return "UNKNOWN_ATTRIBUTE"
	case StatusReadOnly:
		return "READ_ONLY"
	case StatusWrongDirection:
		return "WRONG_DIRECTION"
	case StatusShortBuffer:
		return "SHORT_BUFFER"
	case StatusBadValue:
		return "BAD_VALUE"
	case StatusQueueBusy:
		return "QUEUE_BUSY"
	case StatusNotRunning:
		return "NOT_RUNNING"
	case StatusBadVector:
		return "BAD_VECTOR"
	case StatusBadSize:
		return "BAD_SIZE"
	case StatusOverlap:
		return "OVERLAP"
	case StatusBadOwner:
		return "BAD_OWNER"
	case StatusBadCommand:
		return "BAD_COMMAND"
	}
	return "status " + itoa(int(s))
}

// Error makes a status usable as an error. StatusOK is not one: see [Status.Err].
func (s Status) Error() string { return "adapter: " + s.String() }

// Err returns nil for StatusOK, else the status.
func (s Status) Err() error {
	if s == StatusOK {
		return nil
	}
	return s
}

func itoa(i int) string { return strconv.Itoa(i) }
