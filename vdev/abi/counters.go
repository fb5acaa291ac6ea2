// SPDX-License-Identifier: Apache-2.0

package abi

// Counter is the index of a counter (SPEC.md §13).
type Counter int

// Counters.
const (
	CounterRequests             Counter = iota // requests taken
	CounterResponses                           // responses published
	CounterRequestsRejected                    // requests whose terminal status is 32 or above
	CounterDoorbellsIn                         // IN_DOORBELL writes
	CounterDoorbellsOut                        // OUT_DOORBELL writes
	CounterDoorbellIgnored                     // doorbells of queues not running
	CounterInterrupts                          // vectors signalled
	CounterInterruptsSuppressed                // publications for which the event word asked no interrupt
	CounterInterruptsUrgent                    // IF12 interrupts
	CounterDescriptorReads                     // DMA reads of runs of requests
	CounterDescriptorWrites                    // DMA writes of runs of responses
	CounterPayloadReads                        // DMA reads of payload
	CounterPayloadWrites                       // DMA writes of payload
	CounterPayloadBytesRead
	CounterPayloadBytesWritten
	CounterControlReads  // DMA reads of control buffers
	CounterControlWrites // DMA writes into control buffers
	CounterDMAErrors     // DMA accesses that failed
	CounterConnects      // connect targets started
	CounterConnectsOK
	CounterConnectsFailed
	CounterListens       // listeners, and datagram endpoints without a peer, opened
	CounterArrivals      // connections announced
	CounterTerminations  // termination requests done
	CounterRemoteCloses  // FINs of peers reported
	CounterResets        // connections that a peer reset
	CounterCancellations // requests that a cancellation ended
	CounterConnections   // connections alive (gauge)
	CounterConnectionsPeak
	CounterBytesSent // payload accepted for sending
	CounterBytesAcked
	CounterBytesReceived  // payload that arrived in order
	CounterBytesDelivered // payload written to host buffers and reported
	CounterSends          // buffer send requests
	CounterSendsDone
	CounterBuffersPosted // buffer available requests
	CounterBuffersReturned
	CounterPoolDeliveries // deliveries into bulk buffers
	CounterOwnDeliveries  // deliveries into a connection's own buffers
	CounterPoolEmpty      // times that data waited because no buffer was there
	CounterResponsesHeld  // responses held because the output table was full
	CounterResponsesAbandoned
	CounterRequestsStalled // passes ended because adapter memory for responses was full
	CounterReportsWaiting
	CounterMMIOReads
	CounterMMIOWrites
	CounterMMIOBadAccess
	CounterMMIOBadValue
	CounterResetsFunction // function-level, device and register resets
	CounterAttributeGets  // tuples
	CounterAttributeSets  // tuples
	CounterFramesSent
	CounterFramesReceived
	CounterFramesDropped
	CounterSegmentsSent
	CounterSegmentsReceived
	CounterRetransmits
	CounterMemoryUsed      // gauge
	CounterArrivalsRefused // connections reset for want of memory or room
	CounterCheckerViolations
	CounterOrphanBytes  // received bytes dropped because the host had closed
	CounterQueuePasses  // times that a queue worker looked at its tables
	CounterQueueWakeups // times that it had slept before
	CounterCopiesBytes  // payload bytes copied between engine and host memory
	CounterNotices      // completions and arrivals that waited to be told
	CounterNotifyCount  // releases by NOTIFY_COUNT
	CounterNotifyAmount
	CounterNotifyFirst
	CounterNotifyLast
	CounterNotifyCeiling // releases by a ceiling of time or bytes
	CounterNotifyDynamic
	CounterNotifyData
	CounterNotifyPattern
	CounterNotifyEnd     // releases by the end of what the notice is about
	CounterReports       // report buffers given back with records
	CounterReportRecords // records in them
	CounterDatagramsSent
	CounterDatagramsDelivered
	CounterDatagramsDropped // that came for an endpoint and were lost
	CounterDatagramsTruncated
	CounterDatagramsRefused // ICMP port unreachable, told to the host
	CounterStateRecords     // state records written, whoever asked
	CounterCarriedOut       // connections handed over at an orderly stop
	CounterCarriedIn        // connections restored
	CounterCarryRefused     // connections that were to be handed over or restored, and were not
	CounterBufferWaits      // waits for a buffer of the connection or its group (14.2)
	CounterBufferWaitsMet   // of them, ended by such a buffer
	CounterBufferWaitsOver  // of them, ended by time
	CounterHistoryNone      // times that bytes did not wait because of the history
	CounterHistoryReduced   // times that they waited less
	CounterTurnsStarved     // turns given because a connection was starved, before one that would have come first
	CounterTurnsExpedited   // turns given before others because of ASAP or EXPEDITED
	CounterTurnsPriority    // turns given before others because of PRIORITY
	CounterGroupDeliveries  // deliveries into buffers of a group (14.4)
	CounterPoolMatches      // choices of a bulk buffer by best match (14.5)
	CounterPoolWhole        // of them, those that take the bytes as a whole
	CounterBufferTableReads // DMA reads of BUFFER_TABLE
	CounterReceiveWaits     // waits of received bytes that began (SPEC.md §14.6)
	CounterReceiveByTime    // waits ended by NOTIFY_TIME
	CounterReceiveByBytes
	CounterReceiveByMax
	CounterReceiveByRoom   // waits ended because buffers or half of the window were full
	CounterReceiveByEnd    // waits ended by the end of what they are about
	CounterTransfersMerged // sends that were read, in whole or in part, by the DMA of the one before
	CounterDelayCwnd       // sends left in host memory because of the congestion window
	CounterDelayBandwidth  // because of the bandwidth-delay product
	CounterDelayMemory     // because of adapter memory
	CounterDelayFairness   // because of fairness
	CounterDelayClass      // because of their class
	CounterDelayCount      // lists of such sends run by DELAY_COUNT
	CounterDelayBytes      // run by DELAY_BYTES
	CounterDelayAge        // run by DELAY_AGE
	CounterDelayASAP       // run by an ASAP send
	CounterDelayOver       // connections that left the list because no criterion held any longer
	CounterCopiesKept      // copies of sends made
	CounterCopiesFound     // sends that found a copy
	CounterCopiesEvicted   // copies given up for want of room
	CounterCopiesDropped   // copies dropped because of MODIFY, of a write into their memory, or of another mapping
	CounterBytesKept       // payload bytes read into copies
	CounterGroupSends      // sends made of sends to groups, one for each connection
	CounterReadWaits       // times that received bytes waited for a read
	CounterReceiveByArrivals
	CounterReceiveByPosts
	CounterReceiveByConsumption
	CounterReceiveByAmounts
	CounterGatheredUnits    // waits ended by a whole link transfer
	CounterGatheredParts    // waits for one that ended by time
	CounterResultsCombined  // results of deliveries that a response covers, but the first of each
	CounterMemoryShort      // times that adapter memory went above SPILL_THRESHOLD (14.9)
	CounterSpilledBytes     // bytes that went to bulk buffers while it was
	CounterWindowsClosed    // receive windows narrowed because of it
	CounterSegmentsRefused  // segments whose payload was dropped for want of adapter memory
	CounterFragments        // buffers given back before they were full because of FRAGMENT (14.10)
	CounterBacklogDrops     // segments of callers dropped because the backlog was full
	CounterSkippedBytes     // received bytes that were consumed without being delivered (14.11)
	CounterPeeks            // buffers with bytes that were copied and not consumed (14.12)
	CounterPeekedBytes      // bytes in them
	CounterPeeksAnswered    // waits after a peek, ended by a buffer of the connection or a redirection
	CounterPeeksOver        // of them, ended by time
	CounterRedirectedBytes  // bytes delivered into buffers of another connection
	CounterRedirectsOver    // redirections ended because there was no such buffer in time
	CounterNonTemporalBytes // received bytes written by non-temporal stores (14.13)
	CounterPlacementsOver   // deliveries so written because of PLACEMENT_BUDGET
	CounterDeliveriesMerged // deliveries that were written, in whole or in part, by the DMA of the one before

	NumCounters = 144
)

// String returns the counter's name in SPEC.md §13.
func (c Counter) String() string {
	if c < 0 || c >= NumCounters {
		return "counter_" + itoa(int(c))
	}
	return counterNames()[c]
}

func counterNames() [NumCounters]string {
	return [NumCounters]string{
		"requests",
		"responses",
		"requests_rejected",
		"doorbells_in",
		"doorbells_out",
		"doorbell_ignored",
		"interrupts",
		"interrupts_suppressed",
		"interrupts_urgent",
		"descriptor_reads",
		"descriptor_writes",
		"payload_reads",
		"payload_writes",
		"payload_bytes_read",
		"payload_bytes_written",
		"control_reads",
		"control_writes",
		"dma_errors",
		"connects",
		"connects_ok",
		"connects_failed",
		"listens",
		"arrivals",
		"terminations",
		"remote_closes",
		"resets",
		"cancellations",
		"connections",
		"connections_peak",
		"bytes_sent",
		"bytes_acked",
		"bytes_received",
		"bytes_delivered",
		"sends",
		"sends_done",
		"buffers_posted",
		"buffers_returned",
		"pool_deliveries",
		"own_deliveries",
		"pool_empty",
		"responses_held",
		"responses_abandoned",
		"requests_stalled",
		"reports_waiting",
		"mmio_reads",
		"mmio_writes",
		"mmio_bad_access",
		"mmio_bad_value",
		"resets_function",
		"attribute_gets",
		"attribute_sets",
		"frames_sent",
		"frames_received",
		"frames_dropped",
		"segments_sent",
		"segments_received",
		"retransmits",
		"memory_used",
		"arrivals_refused",
		"checker_violations",
		"orphan_bytes",
		"queue_passes",
		"queue_wakeups",
		"copies_bytes",
		"notices",
		"notify_count",
		"notify_amount",
		"notify_first",
		"notify_last",
		"notify_ceiling",
		"notify_dynamic",
		"notify_data",
		"notify_pattern",
		"notify_end",
		"reports",
		"report_records",
		"datagrams_sent",
		"datagrams_delivered",
		"datagrams_dropped",
		"datagrams_truncated",
		"datagrams_refused",
		"state_records",
		"carried_out",
		"carried_in",
		"carry_refused",
		"buffer_waits",
		"buffer_waits_met",
		"buffer_waits_over",
		"history_none",
		"history_reduced",
		"turns_starved",
		"turns_expedited",
		"turns_priority",
		"group_deliveries",
		"pool_matches",
		"pool_whole",
		"buffer_table_reads",
		"receive_waits",
		"receive_by_time",
		"receive_by_bytes",
		"receive_by_max",
		"receive_by_room",
		"receive_by_end",
		"transfers_merged",
		"delay_cwnd",
		"delay_bandwidth",
		"delay_memory",
		"delay_fairness",
		"delay_class",
		"delay_count",
		"delay_bytes",
		"delay_age",
		"delay_asap",
		"delay_over",
		"copies_kept",
		"copies_found",
		"copies_evicted",
		"copies_dropped",
		"bytes_kept",
		"group_sends",
		"read_waits",
		"receive_by_arrivals",
		"receive_by_posts",
		"receive_by_consumption",
		"receive_by_amounts",
		"gathered_units",
		"gathered_parts",
		"results_combined",
		"memory_short",
		"spilled_bytes",
		"windows_closed",
		"segments_refused",
		"fragments",
		"backlog_drops",
		"skipped_bytes",
		"peeks",
		"peeked_bytes",
		"peeks_answered",
		"peeks_over",
		"redirected_bytes",
		"redirects_over",
		"nontemporal_bytes",
		"placements_over",
		"deliveries_merged",
	}
}
