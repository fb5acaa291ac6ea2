// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"reflect"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// The stack tells a connection's SND.UNA (RFC 9293 section 3.3.1) to its probe
// after each arriving segment, but not before the first. Its value at the
// first write, from which acknowledged bytes are counted, is read from where
// the stack keeps it.

// unackedField finds SND.UNA in the stack's sender. It fails when another
// version of the stack keeps it elsewhere.
func unackedField() (reflect.StructField, error) {
	missing := errors.New("engine: this version of the TCP stack keeps SND.UNA elsewhere")
	snd, ok := reflect.TypeFor[tcp.Endpoint]().FieldByName("snd")
	if !ok || snd.Type.Kind() != reflect.Pointer || snd.Type.Elem().Kind() != reflect.Struct {
		return reflect.StructField{}, missing
	}
	una, ok := snd.Type.Elem().FieldByName("SndUna")
	if !ok || una.Type.Kind() != reflect.Uint32 {
		return reflect.StructField{}, missing
	}
	return una, nil
}

// sendUnacked is the sequence number of the first byte that the peer has not
// acknowledged; false before the handshake is over.
func sendUnacked(e *tcp.Endpoint, field reflect.StructField) (uint32, bool) {
	e.LockUser()
	defer e.UnlockUser()
	snd := reflect.ValueOf(e).Elem().FieldByName("snd")
	if snd.IsNil() {
		return 0, false
	}
	return uint32(snd.Elem().FieldByIndex(field.Index).Uint()), true
}

// sendMSS is the payload that a segment carries at most; 0 when the stack keeps
// it elsewhere or there is no sender.
func sendMSS(e *tcp.Endpoint) uint32 {
	e.LockUser()
	defer e.UnlockUser()
	snd := reflect.ValueOf(e).Elem().FieldByName("snd")
	if snd.Kind() != reflect.Pointer || snd.IsNil() || snd.Elem().Kind() != reflect.Struct {
		return 0
	}
	f := snd.Elem().FieldByName("MaxPayloadSize")
	if !f.IsValid() || !f.CanInt() {
		return 0
	}
	return uint32(max(f.Int(), 0))
}
