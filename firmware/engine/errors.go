// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// fromStack gives the sentinel for an error of the protocol stack. It knows
// nothing of the endpoint: what depends on its history (an end of stream that
// is really a reset, say) is decided where that is known.
func fromStack(err tcpip.Error) error {
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrWouldBlock:
		return ErrWouldBlock
	case *tcpip.ErrClosedForReceive:
		return ErrEndOfStream
	case *tcpip.ErrClosedForSend:
		return ErrClosed
	case *tcpip.ErrConnectionRefused:
		return ErrRefused
	case *tcpip.ErrConnectionReset:
		return ErrReset
	case *tcpip.ErrAborted, *tcpip.ErrConnectionAborted:
		return ErrAborted
	case *tcpip.ErrTimeout:
		return ErrTimedOut
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return ErrHostUnreachable
	case *tcpip.ErrNetworkUnreachable, *tcpip.ErrNoNet, *tcpip.ErrUnknownNICID:
		return ErrNetUnreachable
	case *tcpip.ErrPortInUse:
		return ErrAddressInUse
	case *tcpip.ErrBadLocalAddress, *tcpip.ErrBadAddress, *tcpip.ErrAddressFamilyNotSupported, *tcpip.ErrBroadcastDisabled:
		return ErrBadAddress
	case *tcpip.ErrNoPortAvailable:
		return ErrNoPorts
	case *tcpip.ErrNotConnected, *tcpip.ErrDestinationRequired:
		return ErrNotConnected
	case *tcpip.ErrInvalidEndpointState, *tcpip.ErrAlreadyBound, *tcpip.ErrAlreadyConnected, *tcpip.ErrAlreadyConnecting, *tcpip.ErrEndpointBusy:
		return ErrInvalidState
	case *tcpip.ErrNoBufferSpace:
		return ErrNoMemory
	case *tcpip.ErrNotSupported, *tcpip.ErrUnknownProtocol, *tcpip.ErrUnknownProtocolOption:
		return ErrNotSupported
	case *tcpip.ErrMessageTooLong:
		return ErrMessageTooLong
	case *tcpip.ErrInvalidOptionValue:
		return ErrBadOption
	}
	return fmt.Errorf("engine: %v", err)
}
