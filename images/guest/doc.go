// SPDX-License-Identifier: Apache-2.0

// Package guest is the first program in the guest: it mounts what a Linux needs,
// loads the kernel modules of the image, opens the control channel, gives the
// adapters to vfio-pci, or to uio_pci_generic, and starts the guest tool, once for each,
// that serves over it.
//
// It runs as process 1. What goes wrong is reported over the control channel as a
// [Phase] and on the console, and the guest stays up so that one can look; only
// without a control channel does it end, which the kernel turns into a panic.
//
// The control channel is served from the start, before the adapter is up.
package guest

// Names by which host and guest know each other's requests on the control channel,
// and the port they meet at.
const (
	Port = "toebox.control" // virtio-serial port

	KindPhase    = "guest.phase"    // guest to host: a Phase
	KindPowerOff = "guest.poweroff" // host to guest

	// Shell is for people; /bin/sh is for scripts.
	Shell = "/bin/tbsh"

	// NoAdapter on the kernel's command line means that there is none to bring up.
	NoAdapter = "toebox.adapter=none"
	// UIO there means that the adapter is driven over UIO, without an IOMMU.
	UIO = "toebox.driver=uio"
)

// Drivers of the adapter, as the guest tool knows them.
const (
	DriverVFIO = "vfio"
	DriverUIO  = "uio"
)

// Phases, in their order.
const (
	PhaseModules = "modules"
	PhaseBind    = "bind"
	PhaseServe   = "serve"
	PhaseReady   = "ready"  // the last one of a good start
	PhaseServed  = "served" // the guest tool has ended
)

// A Phase of the guest's start is over, or has failed.
type Phase struct {
	Name   string `json:"name"`
	Error  string `json:"error,omitempty"`
	Uptime int64  `json:"uptime"` // ms since the kernel's start
	Detail string `json:"detail,omitempty"`
}
