// SPDX-License-Identifier: Apache-2.0

package abi

// Identity of the PCI function (SPEC.md §2).
const (
	VendorID          = 0x1234
	DeviceID          = 0x7422
	SubsystemVendorID = 0x1234
	SubsystemID       = 0x0001
	RevisionID        = 0x01
	ClassCode         = 0xff0000
)

// BARs (SPEC.md §2).
const (
	BARRegisters     = 0
	BARRegistersSize = 64 << 10
	BARMSIX          = 2
	BARMSIXSize      = 4 << 10
	MSIXTableOffset  = 0x000
	MSIXPBAOffset    = 0x800
)

// Limits (SPEC.md §3.1).
const (
	MaxQueues      = 32
	NumVectors     = 33
	MinRingLog2    = 4
	MaxRingLog2    = 16
	MaxControlSize = 1 << 20
)

// Registers of BAR0 (SPEC.md §3).
const (
	RegID           = 0x0000
	RegVersion      = 0x0004
	RegFeatures     = 0x0008
	RegLimits       = 0x000c
	RegControl      = 0x0010
	RegStatus       = 0x0014
	RegGeneration   = 0x0018
	RegFirmwareID   = 0x001c
	RegEvents       = 0x0020
	RegEventMask    = 0x0024
	RegINTxCause    = 0x0028
	RegINTxQueues   = 0x002c
	RegMACLo        = 0x0030
	RegMACHi        = 0x0034
	RegUptimeLo     = 0x0040
	RegUptimeHi     = 0x0044
	RegScratch      = 0x0080
	RegRaise        = 0x0084
	RegTestAddrLo   = 0x0090
	RegTestAddrHi   = 0x0094
	RegTestLength   = 0x0098
	RegTestSeed     = 0x009c
	RegTestCommand  = 0x00a0
	RegTestStatus   = 0x00a4
	RegTestResult   = 0x00a8
	RegClockMode    = 0x00c0
	RegClockStepLo  = 0x00c4
	RegClockStepHi  = 0x00c8
	RegClockNowLo   = 0x00cc
	RegClockNowHi   = 0x00d0
	RegChecker      = 0x00e0
	RegCheckerCount = 0x00e4
	RegNVMAddr      = 0x0100
	RegNVMData      = 0x0104
	RegNVMCommand   = 0x0108
	RegNVMStatus    = 0x010c
	RegStatSelect   = 0x0200
	RegStatLo       = 0x0204
	RegStatHi       = 0x0208

	RegQueueBase   = 0x1000 // queue q at RegQueueBase + q*RegQueueStride
	RegQueueStride = 0x40
	RegDoorbells   = 0x4000 // IN_DOORBELL of queue q at RegDoorbells + q*DoorbellStride
	DoorbellStride = 8
	DoorbellOut    = 4 // OUT_DOORBELL behind IN_DOORBELL
)

// Registers of a queue, from RegQueueBase + q*RegQueueStride (SPEC.md §3.2).
const (
	QRegCommand  = 0x00
	QRegState    = 0x04
	QRegInLo     = 0x08
	QRegInHi     = 0x0c
	QRegOutLo    = 0x10
	QRegOutHi    = 0x14
	QRegEventLo  = 0x18
	QRegEventHi  = 0x1c
	QRegSizes    = 0x20
	QRegVector   = 0x24
	QRegInIndex  = 0x28
	QRegOutIndex = 0x2c
	QRegHeld     = 0x30
	QRegError    = 0x34
)

// Reset values and bits (SPEC.md §3).
const (
	IDValue      = 0x424f4554 // "TEOB" in memory order
	VersionValue = 0x00010000

	FeatureTCP  = 1 << 0
	FeatureUDP  = 1 << 1
	FeatureIPv6 = 1 << 2
	FeatureTest = 1 << 3

	ControlRun   = 1 << 0
	ControlStop  = 1 << 1
	ControlReset = 1 << 31

	StatusReady   = 1 << 0
	StatusRunning = 1 << 1
	StatusStopped = 1 << 2
	StatusFailed  = 1 << 3
	StatusLink    = 1 << 4
	StatusMSIX    = 1 << 5
	StatusDMA     = 1 << 6
)

// EVENTS bits (SPEC.md §9.3).
const (
	EventFirmware   = 1 << 0
	EventLink       = 1 << 1
	EventQueueError = 1 << 2
	EventNVM        = 1 << 3
	EventChecker    = 1 << 4
	EventRaise      = 1 << 5
	EventStopped    = 1 << 6
)

// QueueCommand is written to Q_COMMAND (SPEC.md §3.2).
type QueueCommand uint32

// Queue commands.
const (
	QueueCreate  QueueCommand = 1
	QueuePause   QueueCommand = 2
	QueueResume  QueueCommand = 3
	QueueDrain   QueueCommand = 4
	QueueDestroy QueueCommand = 5
)

// QueueState is in bits 3..0 of Q_STATE (SPEC.md §3.2).
type QueueState uint8

// Queue states.
const (
	QueueDisabled QueueState = 0
	QueueRunning  QueueState = 1
	QueuePaused   QueueState = 2
	QueueDraining QueueState = 3
	QueueDrained  QueueState = 4
	QueueError    QueueState = 5
)

// Test commands and states (SPEC.md §12).
const (
	TestWrite = 1
	TestRead  = 2

	TestIdle      = 0
	TestBusy      = 1
	TestDone      = 2
	TestBadLength = 3
	TestFailed    = 4

	TestMaxLength = 65536
	TestIncrement = 0x9e3779b9
)

// NVM commands and states (SPEC.md §10).
const (
	NVMRead    = 1
	NVMWrite   = 2
	NVMCommit  = 3
	NVMRestore = 4

	NVMIdle    = 0
	NVMBusy    = 1
	NVMDone    = 2
	NVMFailed  = 3
	NVMCorrupt = 1 << 8

	NVMSize = 512
)
