// SPDX-License-Identifier: Apache-2.0

package abi

// Attribute names an attribute of the adapter or of a connection (SPEC.md §7).
type Attribute uint16

// Attributes that carry the targets of control requests (SPEC.md §6.2, §6.3).
const (
	AttrTarget    Attribute = 0x0001
	AttrTerminate Attribute = 0x0002
	AttrCancel    Attribute = 0x0003
	AttrRestore   Attribute = 0x0004
)

// Attributes of the adapter (SPEC.md §7, IF13).
const (
	AttrMAC             Attribute = 0x0100 // MAC
	AttrAddress4        Attribute = 0x0101 // ADDRESS4
	AttrAddress6        Attribute = 0x0102 // ADDRESS6
	AttrDomain          Attribute = 0x0103 // DOMAIN
	AttrResolvers       Attribute = 0x0104 // RESOLVERS
	AttrRoutes          Attribute = 0x0105 // ROUTES
	AttrMTU             Attribute = 0x0106 // MTU
	AttrMemorySize      Attribute = 0x0107 // MEMORY_SIZE
	AttrMemoryUsed      Attribute = 0x0108 // MEMORY_USED
	AttrCounters        Attribute = 0x0109 // COUNTERS
	AttrSerial          Attribute = 0x010a // SERIAL
	AttrFirmware        Attribute = 0x010b // FIRMWARE
	AttrOutThreshold    Attribute = 0x010c // OUT_THRESHOLD
	AttrMaxConnections  Attribute = 0x010d // MAX_CONNECTIONS
	AttrSpillThreshold  Attribute = 0x010e // SPILL_THRESHOLD
	AttrBufferTable     Attribute = 0x010f // BUFFER_TABLE
	AttrBufferTableMode Attribute = 0x0110 // BUFFER_TABLE_MODE
	AttrEndpointCount   Attribute = 0x0111 // ENDPOINT_COUNT
	AttrQueueCount      Attribute = 0x0112 // QUEUE_COUNT
	AttrLink            Attribute = 0x0113 // LINK
	AttrCheckerReport   Attribute = 0x0114 // CHECKER_REPORT
	AttrAliases         Attribute = 0x0115 // ALIASES
	AttrAnnounce        Attribute = 0x0116 // ANNOUNCE
	AttrSendCache       Attribute = 0x0117 // SEND_CACHE
	AttrRecords         Attribute = 0x0120 // RECORDS
)

// Attributes of connections (SPEC.md §7, IF14).
const (
	AttrProtocol          Attribute = 0x0200 // PROTOCOL
	AttrLocal             Attribute = 0x0201 // LOCAL
	AttrRemote            Attribute = 0x0202 // REMOTE
	AttrState             Attribute = 0x0203 // STATE
	AttrConnectLimit      Attribute = 0x0204 // CONNECT_LIMIT
	AttrListenLimit       Attribute = 0x0205 // LISTEN_LIMIT
	AttrBacklog           Attribute = 0x0206 // BACKLOG
	AttrReceiveWindow     Attribute = 0x0207 // RECEIVE_WINDOW
	AttrSendBuffer        Attribute = 0x0208 // SEND_BUFFER
	AttrNagle             Attribute = 0x0209 // NAGLE
	AttrSACK              Attribute = 0x020a // SACK
	AttrKeepalive         Attribute = 0x020b // KEEPALIVE
	AttrKeepaliveIdle     Attribute = 0x020c // KEEPALIVE_IDLE
	AttrKeepaliveInterval Attribute = 0x020d // KEEPALIVE_INTERVAL
	AttrKeepaliveCount    Attribute = 0x020e // KEEPALIVE_COUNT
	AttrUserTimeout       Attribute = 0x020f // USER_TIMEOUT
	AttrCongestion        Attribute = 0x0210 // CONGESTION
	AttrTOS               Attribute = 0x0211 // TOS
	AttrTTL               Attribute = 0x0212 // TTL
	AttrPriority          Attribute = 0x0213 // PRIORITY
	AttrQoSClass          Attribute = 0x0214 // QOS_CLASS
	AttrCompletionPoint   Attribute = 0x0215 // COMPLETION_POINT
	AttrLinger            Attribute = 0x0216 // LINGER
	AttrSteering          Attribute = 0x0217 // STEERING
	AttrBroadcast         Attribute = 0x0218 // BROADCAST
	AttrMulticastTTL      Attribute = 0x0219 // MULTICAST_TTL
	AttrMulticastLoop     Attribute = 0x021a // MULTICAST_LOOP
	AttrJoin              Attribute = 0x021b // JOIN
	AttrLeave             Attribute = 0x021c // LEAVE
	AttrDelayCriteria     Attribute = 0x0220 // DELAY_CRITERIA
	AttrDelayCount        Attribute = 0x0221 // DELAY_COUNT
	AttrDelayBytes        Attribute = 0x0222 // DELAY_BYTES
	AttrDelayAge          Attribute = 0x0223 // DELAY_AGE
	AttrDelayDynamic      Attribute = 0x0224 // DELAY_DYNAMIC
	AttrASAPMode          Attribute = 0x0225 // ASAP_MODE
	AttrStarvation        Attribute = 0x0226 // STARVATION
	AttrLinkTransferSize  Attribute = 0x0227 // LINK_TRANSFER_SIZE
	AttrGatherThreshold   Attribute = 0x0228 // GATHER_THRESHOLD
	AttrKeepSends         Attribute = 0x0229 // KEEP_SENDS
	AttrGroup             Attribute = 0x0230 // GROUP
	AttrGroupBy           Attribute = 0x0231 // GROUP_BY
	AttrBufferPolicy      Attribute = 0x0232 // BUFFER_POLICY
	AttrBufferWait        Attribute = 0x0233 // BUFFER_WAIT
	AttrHistoryCount      Attribute = 0x0234 // HISTORY_COUNT
	AttrHistoryTime       Attribute = 0x0235 // HISTORY_TIME
	AttrHistoryThreshold  Attribute = 0x0236 // HISTORY_THRESHOLD
	AttrHistoryMode       Attribute = 0x0237 // HISTORY_MODE
	AttrPoolWeights       Attribute = 0x0238 // POOL_WEIGHTS
	AttrDMAWhen           Attribute = 0x0239 // DMA_WHEN
	AttrHistory           Attribute = 0x023a // HISTORY
	AttrNotifyTime        Attribute = 0x0240 // NOTIFY_TIME
	AttrNotifyBytes       Attribute = 0x0241 // NOTIFY_BYTES
	AttrNotifyDynamic     Attribute = 0x0242 // NOTIFY_DYNAMIC
	AttrNotifyMax         Attribute = 0x0243 // NOTIFY_MAX
	AttrExpedited         Attribute = 0x0244 // EXPEDITED
	AttrCombine           Attribute = 0x0245 // COMBINE
	AttrNotifyCount       Attribute = 0x0250 // NOTIFY_COUNT
	AttrNotifyAmount      Attribute = 0x0251 // NOTIFY_AMOUNT
	AttrNotifyFirst       Attribute = 0x0252 // NOTIFY_FIRST
	AttrNotifyLast        Attribute = 0x0253 // NOTIFY_LAST
	AttrNotifyCeiling     Attribute = 0x0254 // NOTIFY_CEILING
	AttrNotifyAdaptive    Attribute = 0x0255 // NOTIFY_ADAPTIVE
	AttrNotifyData        Attribute = 0x0256 // NOTIFY_DATA
	AttrNotifyFailures    Attribute = 0x0257 // NOTIFY_FAILURES
	AttrNotifyPattern     Attribute = 0x0258 // NOTIFY_PATTERN
	AttrNotifyReport      Attribute = 0x0259 // NOTIFY_REPORT
	AttrReportPeriod      Attribute = 0x025a // REPORT_PERIOD
	AttrCarryOver         Attribute = 0x025b // CARRY_OVER
	AttrPlacement         Attribute = 0x0260 // PLACEMENT
	AttrPlacementBudget   Attribute = 0x0261 // PLACEMENT_BUDGET
	AttrPeek              Attribute = 0x0262 // PEEK
	AttrPeekWait          Attribute = 0x0263 // PEEK_WAIT
	AttrSkip              Attribute = 0x0264 // SKIP
	AttrRTT               Attribute = 0x0280 // RTT
	AttrCongestionWindow  Attribute = 0x0281 // CWND
	AttrBytesSent         Attribute = 0x0282 // BYTES_SENT
	AttrBytesAcked        Attribute = 0x0283 // BYTES_ACKED
	AttrBytesReceived     Attribute = 0x0284 // BYTES_RECEIVED
	AttrBytesDelivered    Attribute = 0x0285 // BYTES_DELIVERED
	AttrSegmentsSent      Attribute = 0x0286 // SEGMENTS_SENT
	AttrSegmentsReceived  Attribute = 0x0287 // SEGMENTS_RECEIVED
	AttrRetransmits       Attribute = 0x0288 // RETRANSMITS
	AttrHeldBuffers       Attribute = 0x0289 // HELD_BUFFERS
	AttrRecord            Attribute = 0x028a // RECORD
	AttrMSS               Attribute = 0x028b // MSS
)

// Kind says how the value of an attribute is encoded (SPEC.md §6.1).
type Kind uint8

// Encodings.
const (
	KindScalar  Kind = iota + 1 // u64
	KindAddress                 // [Address]
	KindString                  // UTF-8, at most 255 bytes
	KindBytes                   // as its row of the table says
)

// AttributeInfo is a row of the attribute table.
type AttributeInfo struct {
	ID         Attribute
	Name       string // as in SPEC.md
	Connection bool   // of a connection and its defaults; else of the adapter
	Settable   bool
	Kind       Kind
	Default    uint64 // of a scalar
}

// Attributes returns the attribute table of SPEC.md §7 in order of ids.
func Attributes() []AttributeInfo {
	return []AttributeInfo{
		{AttrMAC, "MAC", false, false, KindBytes, 0},
		{AttrAddress4, "ADDRESS4", false, true, KindAddress, 0},
		{AttrAddress6, "ADDRESS6", false, true, KindAddress, 0},
		{AttrDomain, "DOMAIN", false, true, KindString, 0},
		{AttrResolvers, "RESOLVERS", false, true, KindAddress, 0},
		{AttrRoutes, "ROUTES", false, true, KindBytes, 0},
		{AttrMTU, "MTU", false, true, KindScalar, 0},
		{AttrMemorySize, "MEMORY_SIZE", false, true, KindScalar, 256 << 20},
		{AttrMemoryUsed, "MEMORY_USED", false, false, KindScalar, 0},
		{AttrCounters, "COUNTERS", false, false, KindBytes, 0},
		{AttrSerial, "SERIAL", false, false, KindString, 0},
		{AttrFirmware, "FIRMWARE", false, false, KindString, 0},
		{AttrOutThreshold, "OUT_THRESHOLD", false, true, KindScalar, 0},
		{AttrMaxConnections, "MAX_CONNECTIONS", false, true, KindScalar, 65536},
		{AttrSpillThreshold, "SPILL_THRESHOLD", false, true, KindScalar, 192 << 20},
		{AttrBufferTable, "BUFFER_TABLE", false, true, KindBytes, 0},
		{AttrBufferTableMode, "BUFFER_TABLE_MODE", false, true, KindScalar, 0},
		{AttrEndpointCount, "ENDPOINT_COUNT", false, false, KindScalar, 0},
		{AttrQueueCount, "QUEUE_COUNT", false, false, KindScalar, 0},
		{AttrLink, "LINK", false, false, KindScalar, 0},
		{AttrCheckerReport, "CHECKER_REPORT", false, false, KindBytes, 0},
		{AttrAliases, "ALIASES", false, true, KindAddress, 0},
		{AttrAnnounce, "ANNOUNCE", false, true, KindAddress, 0},
		{AttrSendCache, "SEND_CACHE", false, true, KindScalar, 16 << 20},
		{AttrRecords, "RECORDS", false, false, KindBytes, 0},
		{AttrProtocol, "PROTOCOL", true, false, KindScalar, 0},
		{AttrLocal, "LOCAL", true, false, KindAddress, 0},
		{AttrRemote, "REMOTE", true, false, KindAddress, 0},
		{AttrState, "STATE", true, false, KindScalar, 0},
		{AttrConnectLimit, "CONNECT_LIMIT", true, true, KindScalar, 30_000_000_000},
		{AttrListenLimit, "LISTEN_LIMIT", true, true, KindScalar, 0},
		{AttrBacklog, "BACKLOG", true, true, KindScalar, 4096},
		{AttrReceiveWindow, "RECEIVE_WINDOW", true, true, KindScalar, 512 << 10},
		{AttrSendBuffer, "SEND_BUFFER", true, true, KindScalar, 512 << 10},
		{AttrNagle, "NAGLE", true, true, KindScalar, 0},
		{AttrSACK, "SACK", true, true, KindScalar, 1},
		{AttrKeepalive, "KEEPALIVE", true, true, KindScalar, 0},
		{AttrKeepaliveIdle, "KEEPALIVE_IDLE", true, true, KindScalar, 7200_000_000_000},
		{AttrKeepaliveInterval, "KEEPALIVE_INTERVAL", true, true, KindScalar, 75_000_000_000},
		{AttrKeepaliveCount, "KEEPALIVE_COUNT", true, true, KindScalar, 9},
		{AttrUserTimeout, "USER_TIMEOUT", true, true, KindScalar, 0},
		{AttrCongestion, "CONGESTION", true, true, KindScalar, 0},
		{AttrTOS, "TOS", true, true, KindScalar, 0},
		{AttrTTL, "TTL", true, true, KindScalar, 64},
		{AttrPriority, "PRIORITY", true, true, KindScalar, 3},
		{AttrQoSClass, "QOS_CLASS", true, true, KindScalar, 0},
		{AttrCompletionPoint, "COMPLETION_POINT", true, true, KindScalar, 2},
		{AttrLinger, "LINGER", true, true, KindScalar, 1<<64 - 1},
		{AttrSteering, "STEERING", true, true, KindScalar, 0},
		{AttrBroadcast, "BROADCAST", true, true, KindScalar, 0},
		{AttrMulticastTTL, "MULTICAST_TTL", true, true, KindScalar, 1},
		{AttrMulticastLoop, "MULTICAST_LOOP", true, true, KindScalar, 1},
		{AttrJoin, "JOIN", true, true, KindAddress, 0},
		{AttrLeave, "LEAVE", true, true, KindAddress, 0},
		{AttrDelayCriteria, "DELAY_CRITERIA", true, true, KindScalar, 0},
		{AttrDelayCount, "DELAY_COUNT", true, true, KindScalar, 32},
		{AttrDelayBytes, "DELAY_BYTES", true, true, KindScalar, 256 << 10},
		{AttrDelayAge, "DELAY_AGE", true, true, KindScalar, 1_000_000},
		{AttrDelayDynamic, "DELAY_DYNAMIC", true, true, KindScalar, 0},
		{AttrASAPMode, "ASAP_MODE", true, true, KindScalar, 0},
		{AttrStarvation, "STARVATION", true, true, KindScalar, 10_000_000},
		{AttrLinkTransferSize, "LINK_TRANSFER_SIZE", true, true, KindScalar, 64 << 10},
		{AttrGatherThreshold, "GATHER_THRESHOLD", true, true, KindScalar, 128 << 10},
		{AttrKeepSends, "KEEP_SENDS", true, true, KindScalar, 0},
		{AttrGroup, "GROUP", true, true, KindScalar, 0},
		{AttrGroupBy, "GROUP_BY", true, true, KindScalar, 1},
		{AttrBufferPolicy, "BUFFER_POLICY", true, true, KindScalar, 0},
		{AttrBufferWait, "BUFFER_WAIT", true, true, KindScalar, 5_000_000},
		{AttrHistoryCount, "HISTORY_COUNT", true, true, KindScalar, 16},
		{AttrHistoryTime, "HISTORY_TIME", true, true, KindScalar, 0},
		{AttrHistoryThreshold, "HISTORY_THRESHOLD", true, true, KindScalar, 50},
		{AttrHistoryMode, "HISTORY_MODE", true, true, KindScalar, 0},
		{AttrPoolWeights, "POOL_WEIGHTS", true, true, KindScalar, 0},
		{AttrDMAWhen, "DMA_WHEN", true, true, KindScalar, 0},
		{AttrHistory, "HISTORY", true, false, KindBytes, 0},
		{AttrNotifyTime, "NOTIFY_TIME", true, true, KindScalar, 0},
		{AttrNotifyBytes, "NOTIFY_BYTES", true, true, KindScalar, 0},
		{AttrNotifyDynamic, "NOTIFY_DYNAMIC", true, true, KindScalar, 0},
		{AttrNotifyMax, "NOTIFY_MAX", true, true, KindScalar, 1_000_000},
		{AttrExpedited, "EXPEDITED", true, true, KindScalar, 0},
		{AttrCombine, "COMBINE", true, true, KindScalar, 0},
		{AttrNotifyCount, "NOTIFY_COUNT", true, true, KindScalar, 1},
		{AttrNotifyAmount, "NOTIFY_AMOUNT", true, true, KindScalar, 0},
		{AttrNotifyFirst, "NOTIFY_FIRST", true, true, KindScalar, 0},
		{AttrNotifyLast, "NOTIFY_LAST", true, true, KindScalar, 0},
		{AttrNotifyCeiling, "NOTIFY_CEILING", true, true, KindScalar, 1_000_000_000},
		{AttrNotifyAdaptive, "NOTIFY_ADAPTIVE", true, true, KindScalar, 0},
		{AttrNotifyData, "NOTIFY_DATA", true, true, KindScalar, 0},
		{AttrNotifyFailures, "NOTIFY_FAILURES", true, true, KindScalar, 0},
		{AttrNotifyPattern, "NOTIFY_PATTERN", true, true, KindBytes, 0},
		{AttrNotifyReport, "NOTIFY_REPORT", true, true, KindScalar, 0},
		{AttrReportPeriod, "REPORT_PERIOD", true, true, KindScalar, 0},
		{AttrCarryOver, "CARRY_OVER", true, true, KindScalar, 0},
		{AttrPlacement, "PLACEMENT", true, true, KindScalar, 0},
		{AttrPlacementBudget, "PLACEMENT_BUDGET", true, true, KindScalar, 1 << 20},
		{AttrPeek, "PEEK", true, true, KindScalar, 0},
		{AttrPeekWait, "PEEK_WAIT", true, true, KindScalar, 5_000_000},
		{AttrSkip, "SKIP", true, true, KindScalar, 0},
		{AttrRTT, "RTT", true, false, KindScalar, 0},
		{AttrCongestionWindow, "CWND", true, false, KindScalar, 0},
		{AttrBytesSent, "BYTES_SENT", true, false, KindScalar, 0},
		{AttrBytesAcked, "BYTES_ACKED", true, false, KindScalar, 0},
		{AttrBytesReceived, "BYTES_RECEIVED", true, false, KindScalar, 0},
		{AttrBytesDelivered, "BYTES_DELIVERED", true, false, KindScalar, 0},
		{AttrSegmentsSent, "SEGMENTS_SENT", true, false, KindScalar, 0},
		{AttrSegmentsReceived, "SEGMENTS_RECEIVED", true, false, KindScalar, 0},
		{AttrRetransmits, "RETRANSMITS", true, false, KindScalar, 0},
		{AttrHeldBuffers, "HELD_BUFFERS", true, false, KindBytes, 0},
		{AttrRecord, "RECORD", true, false, KindBytes, 0},
		{AttrMSS, "MSS", true, false, KindScalar, 0},
	}
}
