// SPDX-License-Identifier: Apache-2.0

// Package pci makes PCI functions for vfio-user servers: configuration space
// from declared capabilities and fields, base address registers, resets, power
// states, and interrupts that go out as software has chosen. It knows nothing
// of any particular device.
//
// The normative texts are PCI Local Bus 3.0 (header, BARs, MSI, MSI-X), PCI Bus
// Power Management 1.2 and PCI Express Base 3.0 (PCI Express capability,
// extended capabilities, function-level reset).
//
// # A device
//
// [New] takes a [Config]: ids, BARs with the functions behind them, and
// [Capability] values, which it lays out, chains and checks for overlap. The
// [Function] it returns implements [vfiouser.Device]:
//
//	f, err := pci.New(pci.Config{ ... })
//	server, err := vfiouser.NewServer(f, f.ServerConfig())
//	f.Connect(server)
//
// A device that has to see every access itself implements vfiouser.Device and
// passes on to the Function what it does not want.
//
// # Accesses
//
// Any length at any offset is served, over the borders of registers too, as if
// byte by byte; what leaves its region is EINVAL. Configuration space follows
// the masks of its fields. BARs that Command or the power state disables read
// all ones and ignore writes; a part of an access that lies in MSI-X table or
// pending bit array never gets to the device.
//
// # Resets
//
//	VFIO_USER_DEVICE_RESET, client gone       --> ResetBus       keeps sticky bits
//	Device Control, Initiate FLR              --> ResetFunction  keeps these and Field.FLRKeeps
//	PMCSR, D3hot to D0, without No_Soft_Reset --> ResetPower     keeps sticky bits
//
// Each calls [Config.Reset] first, so that the device stops; then configuration
// space and MSI-X table get their reset values and pending interrupts are gone;
// then comes [Config.Changed]. The access that asked for it returns after that.
//
// # Interrupts
//
// [Function.Signal] is all that most devices need, with SetINTx(false) once
// the reason has gone. One that has a register of causes for INTx uses
// [Function.Message], and [Function.SetINTx] where that reports false.
//
//	              MSI enable                   MSI-X enable
//	ModeMSI  <----------------->  ModeINTx  <----------------->  ModeMSIX
//	                              any --- not in D0, Close ---> ModeNone
//
// Changing over drops what is pending and lets go of the pin; a device whose
// reason still stands says so again from Changed. Messages need bus mastering.
//
// # Concurrency and locks
//
// All methods are safe for concurrent use. One lock, the function's, guards
// configuration space, MSI-X table and pin. It is held while [IRQs] are told
// and while [Field.Filter] runs: neither may call the function. It is never
// held while the device is called: BAR accesses, Field.Read, Field.Written and
// the functions in Config run on the goroutine of the access and may call
// the function. So a device's own lock comes before the function's: it may be
// held around any call of the function, except that one which is held around
// accesses or Reset must not be taken by the functions that these call.
//
// A message that is not masked, and State, Memory and Master, take no lock.
// Calls of Changed and Written come in the order of the accesses if these come
// one at a time, as from a vfiouser.Server.
package pci
