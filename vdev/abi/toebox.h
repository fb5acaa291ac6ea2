// SPDX-License-Identifier: Apache-2.0
/*
 * toebox offload adapter: the programming interface of SPEC.md in C11 and C++11.
 *
 * Made by "go generate ./vdev/abi" from package abi. Do not edit.
 *
 * Everything is little endian, except network addresses, which are byte strings
 * in network order. The structs are for hosts that are little endian; others
 * swap each field. No struct has a hole or needs packing.
 */
#ifndef TOEBOX_H
#define TOEBOX_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define TOEBOX_ASSERT(cond, text) static_assert(cond, text)
#else
#define TOEBOX_ASSERT(cond, text) _Static_assert(cond, text)
#endif

/* Identity of the PCI function (SPEC.md §2). */
#define TOEBOX_VENDOR_ID                        0x1234u
#define TOEBOX_DEVICE_ID                        0x7422u
#define TOEBOX_SUBSYSTEM_VENDOR_ID              0x1234u
#define TOEBOX_SUBSYSTEM_ID                     0x01u
#define TOEBOX_REVISION_ID                      0x01u
#define TOEBOX_CLASS_CODE                       0xff0000u

/* BARs (SPEC.md §2). */
#define TOEBOX_BAR_REGISTERS                    0
#define TOEBOX_BAR_REGISTERS_SIZE               0x10000u
#define TOEBOX_BAR_MSIX                         2
#define TOEBOX_BAR_MSIX_SIZE                    0x1000u
#define TOEBOX_MSIX_TABLE_OFFSET                0x00u
#define TOEBOX_MSIX_PBA_OFFSET                  0x800u

/* Limits (SPEC.md §3.1). */
#define TOEBOX_MAX_QUEUES                       32
#define TOEBOX_NUM_VECTORS                      33
#define TOEBOX_MIN_RING_LOG2                    4
#define TOEBOX_MAX_RING_LOG2                    16
#define TOEBOX_MAX_CONTROL_SIZE                 0x100000u

/* Registers of BAR0 (SPEC.md §3). */
#define TOEBOX_REG_ID                           0x0000u
#define TOEBOX_REG_VERSION                      0x0004u
#define TOEBOX_REG_FEATURES                     0x0008u
#define TOEBOX_REG_LIMITS                       0x000cu
#define TOEBOX_REG_CONTROL                      0x0010u
#define TOEBOX_REG_STATUS                       0x0014u
#define TOEBOX_REG_GENERATION                   0x0018u
#define TOEBOX_REG_FW_ID                        0x001cu
#define TOEBOX_REG_EVENTS                       0x0020u
#define TOEBOX_REG_EVENT_MASK                   0x0024u
#define TOEBOX_REG_INTX_CAUSE                   0x0028u
#define TOEBOX_REG_INTX_QUEUES                  0x002cu
#define TOEBOX_REG_MAC_LO                       0x0030u
#define TOEBOX_REG_MAC_HI                       0x0034u
#define TOEBOX_REG_UPTIME_LO                    0x0040u
#define TOEBOX_REG_UPTIME_HI                    0x0044u
#define TOEBOX_REG_SCRATCH                      0x0080u
#define TOEBOX_REG_RAISE                        0x0084u
#define TOEBOX_REG_TEST_ADDR_LO                 0x0090u
#define TOEBOX_REG_TEST_ADDR_HI                 0x0094u
#define TOEBOX_REG_TEST_LENGTH                  0x0098u
#define TOEBOX_REG_TEST_SEED                    0x009cu
#define TOEBOX_REG_TEST_COMMAND                 0x00a0u
#define TOEBOX_REG_TEST_STATUS                  0x00a4u
#define TOEBOX_REG_TEST_RESULT                  0x00a8u
#define TOEBOX_REG_CLOCK_MODE                   0x00c0u
#define TOEBOX_REG_CLOCK_STEP_LO                0x00c4u
#define TOEBOX_REG_CLOCK_STEP_HI                0x00c8u
#define TOEBOX_REG_CLOCK_NOW_LO                 0x00ccu
#define TOEBOX_REG_CLOCK_NOW_HI                 0x00d0u
#define TOEBOX_REG_CHECKER                      0x00e0u
#define TOEBOX_REG_CHECKER_COUNT                0x00e4u
#define TOEBOX_REG_NVM_ADDR                     0x0100u
#define TOEBOX_REG_NVM_DATA                     0x0104u
#define TOEBOX_REG_NVM_COMMAND                  0x0108u
#define TOEBOX_REG_NVM_STATUS                   0x010cu
#define TOEBOX_REG_STAT_SELECT                  0x0200u
#define TOEBOX_REG_STAT_LO                      0x0204u
#define TOEBOX_REG_STAT_HI                      0x0208u
#define TOEBOX_REG_QUEUE_BASE                   0x1000u /* queue q at TOEBOX_REG_QUEUE_BASE + q*TOEBOX_REG_QUEUE_STRIDE */
#define TOEBOX_REG_QUEUE_STRIDE                 0x0040u
#define TOEBOX_REG_DOORBELLS                    0x4000u /* IN_DOORBELL of queue q at TOEBOX_REG_DOORBELLS + q*TOEBOX_DOORBELL_STRIDE */
#define TOEBOX_DOORBELL_STRIDE                  8
#define TOEBOX_DOORBELL_OUT                     4 /* OUT_DOORBELL behind IN_DOORBELL */

/* Registers of a queue, from TOEBOX_REG_QUEUE_BASE + q*TOEBOX_REG_QUEUE_STRIDE (SPEC.md §3.2). */
#define TOEBOX_REG_Q_COMMAND                    0x00u
#define TOEBOX_REG_Q_STATE                      0x04u
#define TOEBOX_REG_Q_IN_LO                      0x08u
#define TOEBOX_REG_Q_IN_HI                      0x0cu
#define TOEBOX_REG_Q_OUT_LO                     0x10u
#define TOEBOX_REG_Q_OUT_HI                     0x14u
#define TOEBOX_REG_Q_EVENT_LO                   0x18u
#define TOEBOX_REG_Q_EVENT_HI                   0x1cu
#define TOEBOX_REG_Q_SIZES                      0x20u
#define TOEBOX_REG_Q_VECTOR                     0x24u
#define TOEBOX_REG_Q_IN_INDEX                   0x28u
#define TOEBOX_REG_Q_OUT_INDEX                  0x2cu
#define TOEBOX_REG_Q_HELD                       0x30u
#define TOEBOX_REG_Q_ERROR                      0x34u

/* Reset values and bits (SPEC.md §3). */
#define TOEBOX_ID_VALUE                         0x424f4554u /* "TEOB" in memory order */
#define TOEBOX_VERSION_VALUE                    0x10000u
#define TOEBOX_FEATURE_TCP                      0x01u
#define TOEBOX_FEATURE_UDP                      0x02u
#define TOEBOX_FEATURE_IPV6                     0x04u
#define TOEBOX_FEATURE_TEST                     0x08u
#define TOEBOX_CONTROL_RUN                      0x01u
#define TOEBOX_CONTROL_STOP                     0x02u
#define TOEBOX_CONTROL_RESET                    0x80000000u
#define TOEBOX_STATUS_BIT_READY                 0x01u
#define TOEBOX_STATUS_BIT_RUNNING               0x02u
#define TOEBOX_STATUS_BIT_STOPPED               0x04u
#define TOEBOX_STATUS_BIT_FAILED                0x08u
#define TOEBOX_STATUS_BIT_LINK                  0x10u
#define TOEBOX_STATUS_BIT_MSIX                  0x20u
#define TOEBOX_STATUS_BIT_DMA                   0x40u

/* EVENTS bits (SPEC.md §9.3). */
#define TOEBOX_EVENT_FIRMWARE                   0x01u
#define TOEBOX_EVENT_LINK                       0x02u
#define TOEBOX_EVENT_QUEUE_ERROR                0x04u
#define TOEBOX_EVENT_NVM                        0x08u
#define TOEBOX_EVENT_CHECKER                    0x10u
#define TOEBOX_EVENT_RAISE                      0x20u
#define TOEBOX_EVENT_STOPPED                    0x40u

/* Queue commands. */
#define TOEBOX_QUEUE_CREATE                     1
#define TOEBOX_QUEUE_PAUSE                      2
#define TOEBOX_QUEUE_RESUME                     3
#define TOEBOX_QUEUE_DRAIN                      4
#define TOEBOX_QUEUE_DESTROY                    5

/* Queue states. */
#define TOEBOX_QUEUE_DISABLED                   0
#define TOEBOX_QUEUE_RUNNING                    1
#define TOEBOX_QUEUE_PAUSED                     2
#define TOEBOX_QUEUE_DRAINING                   3
#define TOEBOX_QUEUE_DRAINED                    4
#define TOEBOX_QUEUE_ERROR                      5

/* Test commands and states (SPEC.md §12). */
#define TOEBOX_TEST_WRITE                       1
#define TOEBOX_TEST_READ                        2
#define TOEBOX_TEST_IDLE                        0
#define TOEBOX_TEST_BUSY                        1
#define TOEBOX_TEST_DONE                        2
#define TOEBOX_TEST_BAD_LENGTH                  3
#define TOEBOX_TEST_FAILED                      4
#define TOEBOX_TEST_MAX_LENGTH                  65536
#define TOEBOX_TEST_INCREMENT                   0x9e3779b9u

/* NVM commands and states (SPEC.md §10). */
#define TOEBOX_NVM_READ                         1
#define TOEBOX_NVM_WRITE                        2
#define TOEBOX_NVM_COMMIT                       3
#define TOEBOX_NVM_RESTORE                      4
#define TOEBOX_NVM_IDLE                         0
#define TOEBOX_NVM_BUSY                         1
#define TOEBOX_NVM_DONE                         2
#define TOEBOX_NVM_FAILED                       3
#define TOEBOX_NVM_CORRUPT                      0x100u
#define TOEBOX_NVM_SIZE                         512

/* Event block of a queue (SPEC.md §4.4). */
#define TOEBOX_EVENT_BLOCK_SIZE                 256
#define TOEBOX_EVENT_IN_PUBLISHED               0x00u /* written by the adapter */
#define TOEBOX_EVENT_OUT_PUBLISHED              0x40u /* written by the host */
#define TOEBOX_EVENT_IN_FREED                   0x80u /* written by the host */
#define TOEBOX_EVENT_OUT_FREED                  0xc0u /* written by the adapter */

/* TOEBOX_INDEX_MASK keeps an index modulo 2^30. */
#define TOEBOX_INDEX_MASK                       0x3fffffffu

/* Event words that name no index. */
#define TOEBOX_EVENT_NEVER                      0
#define TOEBOX_EVENT_ALWAYS                     0x80000000u

/* TOEBOX_DESCRIPTOR_SIZE is the size of a descriptor in bytes (SPEC.md §5, IF02). */
#define TOEBOX_DESCRIPTOR_SIZE                  32

/* Requests (IF04) and responses (IF05). */
#define TOEBOX_TYPE_BUFFER_SEND                 1
#define TOEBOX_TYPE_BUFFER_AVAILABLE            2
#define TOEBOX_TYPE_CONNECT                     3
#define TOEBOX_TYPE_TERMINATION                 4
#define TOEBOX_TYPE_LISTEN                      5
#define TOEBOX_TYPE_CANCELLATION                6
#define TOEBOX_TYPE_CONNECTION_ATTR             7
#define TOEBOX_TYPE_ADAPTER_ATTR                8
#define TOEBOX_TYPE_BUFFER_RECEIVE              16
#define TOEBOX_TYPE_BUFFER_DONE                 17 /* buffer available, as a response */
#define TOEBOX_TYPE_ARRIVAL                     18
#define TOEBOX_TYPE_COMPLETION                  19
#define TOEBOX_TYPE_LISTEN_RESPONSE             20
#define TOEBOX_TYPE_TERMINATED                  21
#define TOEBOX_TYPE_CANCELLED                   22
#define TOEBOX_TYPE_CONNECTION_ATTRS            23
#define TOEBOX_TYPE_ADAPTER_ATTRS               24
#define TOEBOX_TYPE_REJECTED                    31

/* Flags. TOEBOX_FLAG_ONCE is of requests, TOEBOX_FLAG_COMBINED of responses. */
#define TOEBOX_FLAG_FINAL                       0x01u
#define TOEBOX_FLAG_PEEK                        0x02u
#define TOEBOX_FLAG_FRAGMENT                    0x04u
#define TOEBOX_FLAG_GROUP                       0x08u
#define TOEBOX_FLAG_SKIP                        0x10u
#define TOEBOX_FLAG_REDIRECT                    0x20u
#define TOEBOX_FLAG_ONCE                        0x40u
#define TOEBOX_FLAG_COMBINED                    0x40u
#define TOEBOX_FLAG_REPORT                      0x80u

/* Bits of word 0 (SPEC.md §5). */
#define TOEBOX_WORD_OWNER                       0x80u
#define TOEBOX_WORD_ASAP                        0x02u
#define TOEBOX_WORD_MODIFY                      0x01u

/* TOEBOX_NO_ORDINAL is the offset of a result that is of no target in particular. */
#define TOEBOX_NO_ORDINAL                       0xffffffffu

/* Termination modes, in the length of a termination request (SPEC.md §5.8). */
#define TOEBOX_TERMINATE_GRACEFUL               0
#define TOEBOX_TERMINATE_ABORT                  1
#define TOEBOX_TERMINATE_SEND                   2
#define TOEBOX_TERMINATE_RECEIVE                3

/* How a connection ended, in the length of a termination response (SPEC.md §5.8). */
#define TOEBOX_ENDED_ORDERLY                    0
#define TOEBOX_ENDED_HOST_RESET                 1
#define TOEBOX_ENDED_PEER_RESET                 2
#define TOEBOX_ENDED_TIMED_OUT                  3
#define TOEBOX_ENDED_HALF_CLOSED                4
#define TOEBOX_ENDED_STREAM                     5
#define TOEBOX_ENDED_LISTENER                   6

/* Sizes in control buffers (SPEC.md §6). */
#define TOEBOX_TUPLE_HEADER_SIZE                8
#define TOEBOX_TUPLE_ALIGN                      8
#define TOEBOX_ADDRESS_SIZE                     24
#define TOEBOX_TARGET_SIZE                      64
#define TOEBOX_TERMINATE_SIZE                   16
#define TOEBOX_CANCEL_SIZE                      16
#define TOEBOX_REPORT_SIZE                      64
#define TOEBOX_STATE_RECORD_SIZE                192
#define TOEBOX_MAX_TUPLES                       255

/* Sizes of composite attribute values (SPEC.md §7). */
#define TOEBOX_HELD_BUFFER_SIZE                 16
#define TOEBOX_BUFFER_TABLE_SIZE                16
#define TOEBOX_BUFFER_ENTRY_SIZE                48
#define TOEBOX_NOTIFY_PATTERN_SIZE              16 /* before the pattern */
#define TOEBOX_MAX_PATTERN                      64

/* TOEBOX_RECORD_EXACT in the flags of a state record says that the connection left the adapter there. */
#define TOEBOX_RECORD_EXACT                     0x01u

/* Options of a state record. */
#define TOEBOX_RECORD_SACK                      0x01u
#define TOEBOX_RECORD_TIMESTAMPS                0x02u
#define TOEBOX_RECORD_SCALING                   0x04u

/* Timers of a state record. */
#define TOEBOX_TIMER_RETRANSMIT                 0x01u
#define TOEBOX_TIMER_KEEP_ALIVE                 0x02u
#define TOEBOX_TIMER_TIME_WAIT                  0x04u
#define TOEBOX_TIMER_PERSIST                    0x08u

/* Attributes that carry the targets of control requests (SPEC.md §6.2, §6.3). */
#define TOEBOX_ATTR_TARGET                      0x0001u
#define TOEBOX_ATTR_TERMINATE                   0x0002u
#define TOEBOX_ATTR_CANCEL                      0x0003u
#define TOEBOX_ATTR_RESTORE                     0x0004u

/* Attributes of the adapter (SPEC.md §7, IF13). */
#define TOEBOX_ATTR_MAC                         0x0100u
#define TOEBOX_ATTR_ADDRESS4                    0x0101u
#define TOEBOX_ATTR_ADDRESS6                    0x0102u
#define TOEBOX_ATTR_DOMAIN                      0x0103u
#define TOEBOX_ATTR_RESOLVERS                   0x0104u
#define TOEBOX_ATTR_ROUTES                      0x0105u
#define TOEBOX_ATTR_MTU                         0x0106u
#define TOEBOX_ATTR_MEMORY_SIZE                 0x0107u
#define TOEBOX_ATTR_MEMORY_USED                 0x0108u
#define TOEBOX_ATTR_COUNTERS                    0x0109u
#define TOEBOX_ATTR_SERIAL                      0x010au
#define TOEBOX_ATTR_FIRMWARE                    0x010bu
#define TOEBOX_ATTR_OUT_THRESHOLD               0x010cu
#define TOEBOX_ATTR_MAX_CONNECTIONS             0x010du
#define TOEBOX_ATTR_SPILL_THRESHOLD             0x010eu
#define TOEBOX_ATTR_BUFFER_TABLE                0x010fu
#define TOEBOX_ATTR_BUFFER_TABLE_MODE           0x0110u
#define TOEBOX_ATTR_ENDPOINT_COUNT              0x0111u
#define TOEBOX_ATTR_QUEUE_COUNT                 0x0112u
#define TOEBOX_ATTR_LINK                        0x0113u
#define TOEBOX_ATTR_CHECKER_REPORT              0x0114u
#define TOEBOX_ATTR_ALIASES                     0x0115u
#define TOEBOX_ATTR_ANNOUNCE                    0x0116u
#define TOEBOX_ATTR_SEND_CACHE                  0x0117u
#define TOEBOX_ATTR_RECORDS                     0x0120u

/* Attributes of connections (SPEC.md §7, IF14). */
#define TOEBOX_ATTR_PROTOCOL                    0x0200u
#define TOEBOX_ATTR_LOCAL                       0x0201u
#define TOEBOX_ATTR_REMOTE                      0x0202u
#define TOEBOX_ATTR_STATE                       0x0203u
#define TOEBOX_ATTR_CONNECT_LIMIT               0x0204u
#define TOEBOX_ATTR_LISTEN_LIMIT                0x0205u
#define TOEBOX_ATTR_BACKLOG                     0x0206u
#define TOEBOX_ATTR_RECEIVE_WINDOW              0x0207u
#define TOEBOX_ATTR_SEND_BUFFER                 0x0208u
#define TOEBOX_ATTR_NAGLE                       0x0209u
#define TOEBOX_ATTR_SACK                        0x020au
#define TOEBOX_ATTR_KEEPALIVE                   0x020bu
#define TOEBOX_ATTR_KEEPALIVE_IDLE              0x020cu
#define TOEBOX_ATTR_KEEPALIVE_INTERVAL          0x020du
#define TOEBOX_ATTR_KEEPALIVE_COUNT             0x020eu
#define TOEBOX_ATTR_USER_TIMEOUT                0x020fu
#define TOEBOX_ATTR_CONGESTION                  0x0210u
#define TOEBOX_ATTR_TOS                         0x0211u
#define TOEBOX_ATTR_TTL                         0x0212u
#define TOEBOX_ATTR_PRIORITY                    0x0213u
#define TOEBOX_ATTR_QOS_CLASS                   0x0214u
#define TOEBOX_ATTR_COMPLETION_POINT            0x0215u
#define TOEBOX_ATTR_LINGER                      0x0216u
#define TOEBOX_ATTR_STEERING                    0x0217u
#define TOEBOX_ATTR_BROADCAST                   0x0218u
#define TOEBOX_ATTR_MULTICAST_TTL               0x0219u
#define TOEBOX_ATTR_MULTICAST_LOOP              0x021au
#define TOEBOX_ATTR_JOIN                        0x021bu
#define TOEBOX_ATTR_LEAVE                       0x021cu
#define TOEBOX_ATTR_DELAY_CRITERIA              0x0220u
#define TOEBOX_ATTR_DELAY_COUNT                 0x0221u
#define TOEBOX_ATTR_DELAY_BYTES                 0x0222u
#define TOEBOX_ATTR_DELAY_AGE                   0x0223u
#define TOEBOX_ATTR_DELAY_DYNAMIC               0x0224u
#define TOEBOX_ATTR_ASAP_MODE                   0x0225u
#define TOEBOX_ATTR_STARVATION                  0x0226u
#define TOEBOX_ATTR_LINK_TRANSFER_SIZE          0x0227u
#define TOEBOX_ATTR_GATHER_THRESHOLD            0x0228u
#define TOEBOX_ATTR_KEEP_SENDS                  0x0229u
#define TOEBOX_ATTR_GROUP                       0x0230u
#define TOEBOX_ATTR_GROUP_BY                    0x0231u
#define TOEBOX_ATTR_BUFFER_POLICY               0x0232u
#define TOEBOX_ATTR_BUFFER_WAIT                 0x0233u
#define TOEBOX_ATTR_HISTORY_COUNT               0x0234u
#define TOEBOX_ATTR_HISTORY_TIME                0x0235u
#define TOEBOX_ATTR_HISTORY_THRESHOLD           0x0236u
#define TOEBOX_ATTR_HISTORY_MODE                0x0237u
#define TOEBOX_ATTR_POOL_WEIGHTS                0x0238u
#define TOEBOX_ATTR_DMA_WHEN                    0x0239u
#define TOEBOX_ATTR_HISTORY                     0x023au
#define TOEBOX_ATTR_NOTIFY_TIME                 0x0240u
#define TOEBOX_ATTR_NOTIFY_BYTES                0x0241u
#define TOEBOX_ATTR_NOTIFY_DYNAMIC              0x0242u
#define TOEBOX_ATTR_NOTIFY_MAX                  0x0243u
#define TOEBOX_ATTR_EXPEDITED                   0x0244u
#define TOEBOX_ATTR_COMBINE                     0x0245u
#define TOEBOX_ATTR_NOTIFY_COUNT                0x0250u
#define TOEBOX_ATTR_NOTIFY_AMOUNT               0x0251u
#define TOEBOX_ATTR_NOTIFY_FIRST                0x0252u
#define TOEBOX_ATTR_NOTIFY_LAST                 0x0253u
#define TOEBOX_ATTR_NOTIFY_CEILING              0x0254u
#define TOEBOX_ATTR_NOTIFY_ADAPTIVE             0x0255u
#define TOEBOX_ATTR_NOTIFY_DATA                 0x0256u
#define TOEBOX_ATTR_NOTIFY_FAILURES             0x0257u
#define TOEBOX_ATTR_NOTIFY_PATTERN              0x0258u
#define TOEBOX_ATTR_NOTIFY_REPORT               0x0259u
#define TOEBOX_ATTR_REPORT_PERIOD               0x025au
#define TOEBOX_ATTR_CARRY_OVER                  0x025bu
#define TOEBOX_ATTR_PLACEMENT                   0x0260u
#define TOEBOX_ATTR_PLACEMENT_BUDGET            0x0261u
#define TOEBOX_ATTR_PEEK                        0x0262u
#define TOEBOX_ATTR_PEEK_WAIT                   0x0263u
#define TOEBOX_ATTR_SKIP                        0x0264u
#define TOEBOX_ATTR_RTT                         0x0280u
#define TOEBOX_ATTR_CWND                        0x0281u
#define TOEBOX_ATTR_BYTES_SENT                  0x0282u
#define TOEBOX_ATTR_BYTES_ACKED                 0x0283u
#define TOEBOX_ATTR_BYTES_RECEIVED              0x0284u
#define TOEBOX_ATTR_BYTES_DELIVERED             0x0285u
#define TOEBOX_ATTR_SEGMENTS_SENT               0x0286u
#define TOEBOX_ATTR_SEGMENTS_RECEIVED           0x0287u
#define TOEBOX_ATTR_RETRANSMITS                 0x0288u
#define TOEBOX_ATTR_HELD_BUFFERS                0x0289u
#define TOEBOX_ATTR_RECORD                      0x028au
#define TOEBOX_ATTR_MSS                         0x028bu

/* Status codes. */
#define TOEBOX_STATUS_OK                        0
#define TOEBOX_STATUS_PARTIAL                   1 /* some tuples failed */
#define TOEBOX_STATUS_CANCELLED                 2 /* by a cancellation, drain, or orderly stop */
#define TOEBOX_STATUS_TIMED_OUT                 3 /* limit reached, or the peer does not answer */
#define TOEBOX_STATUS_REFUSED                   4 /* the peer refused the connection */
#define TOEBOX_STATUS_RESET                     5 /* the peer reset it */
#define TOEBOX_STATUS_HOST_UNREACHABLE          6
#define TOEBOX_STATUS_NET_UNREACHABLE           7
#define TOEBOX_STATUS_ADDRESS_IN_USE            8
#define TOEBOX_STATUS_BAD_ADDRESS               9 /* not an address of the adapter, or of the wrong family */
#define TOEBOX_STATUS_NO_PORTS                  10
#define TOEBOX_STATUS_NO_MEMORY                 11 /* adapter memory, or a limit of connections, is exhausted */
#define TOEBOX_STATUS_CLOSED                    12 /* terminated by the host, or the direction was */
#define TOEBOX_STATUS_END_OF_STREAM             13
#define TOEBOX_STATUS_ABORTED                   14 /* by the adapter */
#define TOEBOX_STATUS_TOO_LATE                  15
#define TOEBOX_STATUS_NOT_SUPPORTED             16
#define TOEBOX_STATUS_TRUNCATED                 17
#define TOEBOX_STATUS_BAD_TYPE                  32
#define TOEBOX_STATUS_RESERVED                  33 /* a reserved bit or field is set */
#define TOEBOX_STATUS_BAD_TAG                   34
#define TOEBOX_STATUS_TAG_IN_USE                35
#define TOEBOX_STATUS_BAD_CONNECTION            36
#define TOEBOX_STATUS_WRONG_QUEUE               37
#define TOEBOX_STATUS_BAD_LENGTH                38
#define TOEBOX_STATUS_BAD_MEMORY                39 /* not mapped, or not for this access */
#define TOEBOX_STATUS_BAD_ALIGNMENT             40
#define TOEBOX_STATUS_BAD_CONTROL_BUFFER        41
#define TOEBOX_STATUS_BAD_PROTOCOL              42
#define TOEBOX_STATUS_BAD_STATE                 43 /* e.g. a send before the connection is established */
#define TOEBOX_STATUS_BAD_MODE                  44
#define TOEBOX_STATUS_UNKNOWN_ATTRIBUTE         48
#define TOEBOX_STATUS_READ_ONLY                 49
#define TOEBOX_STATUS_WRONG_DIRECTION           50
#define TOEBOX_STATUS_SHORT_BUFFER              51
#define TOEBOX_STATUS_BAD_VALUE                 52
#define TOEBOX_STATUS_QUEUE_BUSY                64
#define TOEBOX_STATUS_NOT_RUNNING               65
#define TOEBOX_STATUS_BAD_VECTOR                66
#define TOEBOX_STATUS_BAD_SIZE                  67
#define TOEBOX_STATUS_OVERLAP                   68
#define TOEBOX_STATUS_BAD_OWNER                 69
#define TOEBOX_STATUS_BAD_COMMAND               70

/* Counters. */
#define TOEBOX_COUNTER_REQUESTS                 0 /* requests taken */
#define TOEBOX_COUNTER_RESPONSES                1 /* responses published */
#define TOEBOX_COUNTER_REQUESTS_REJECTED        2 /* requests whose terminal status is 32 or above */
#define TOEBOX_COUNTER_DOORBELLS_IN             3 /* IN_DOORBELL writes */
#define TOEBOX_COUNTER_DOORBELLS_OUT            4 /* OUT_DOORBELL writes */
#define TOEBOX_COUNTER_DOORBELL_IGNORED         5 /* doorbells of queues not running */
#define TOEBOX_COUNTER_INTERRUPTS               6 /* vectors signalled */
#define TOEBOX_COUNTER_INTERRUPTS_SUPPRESSED    7 /* publications for which the event word asked no interrupt */
#define TOEBOX_COUNTER_INTERRUPTS_URGENT        8 /* IF12 interrupts */
#define TOEBOX_COUNTER_DESCRIPTOR_READS         9 /* DMA reads of runs of requests */
#define TOEBOX_COUNTER_DESCRIPTOR_WRITES        10 /* DMA writes of runs of responses */
#define TOEBOX_COUNTER_PAYLOAD_READS            11 /* DMA reads of payload */
#define TOEBOX_COUNTER_PAYLOAD_WRITES           12 /* DMA writes of payload */
#define TOEBOX_COUNTER_PAYLOAD_BYTES_READ       13
#define TOEBOX_COUNTER_PAYLOAD_BYTES_WRITTEN    14
#define TOEBOX_COUNTER_CONTROL_READS            15 /* DMA reads of control buffers */
#define TOEBOX_COUNTER_CONTROL_WRITES           16 /* DMA writes into control buffers */
#define TOEBOX_COUNTER_DMA_ERRORS               17 /* DMA accesses that failed */
#define TOEBOX_COUNTER_CONNECTS                 18 /* connect targets started */
#define TOEBOX_COUNTER_CONNECTS_OK              19
#define TOEBOX_COUNTER_CONNECTS_FAILED          20
#define TOEBOX_COUNTER_LISTENS                  21 /* listeners, and datagram endpoints without a peer, opened */
#define TOEBOX_COUNTER_ARRIVALS                 22 /* connections announced */
#define TOEBOX_COUNTER_TERMINATIONS             23 /* termination requests done */
#define TOEBOX_COUNTER_REMOTE_CLOSES            24 /* FINs of peers reported */
#define TOEBOX_COUNTER_RESETS                   25 /* connections that a peer reset */
#define TOEBOX_COUNTER_CANCELLATIONS            26 /* requests that a cancellation ended */
#define TOEBOX_COUNTER_CONNECTIONS              27 /* connections alive (gauge) */
#define TOEBOX_COUNTER_CONNECTIONS_PEAK         28
#define TOEBOX_COUNTER_BYTES_SENT               29 /* payload accepted for sending */
#define TOEBOX_COUNTER_BYTES_ACKED              30
#define TOEBOX_COUNTER_BYTES_RECEIVED           31 /* payload that arrived in order */
#define TOEBOX_COUNTER_BYTES_DELIVERED          32 /* payload written to host buffers and reported */
#define TOEBOX_COUNTER_SENDS                    33 /* buffer send requests */
#define TOEBOX_COUNTER_SENDS_DONE               34
#define TOEBOX_COUNTER_BUFFERS_POSTED           35 /* buffer available requests */
#define TOEBOX_COUNTER_BUFFERS_RETURNED         36
#define TOEBOX_COUNTER_POOL_DELIVERIES          37 /* deliveries into bulk buffers */
#define TOEBOX_COUNTER_OWN_DELIVERIES           38 /* deliveries into a connection's own buffers */
#define TOEBOX_COUNTER_POOL_EMPTY               39 /* times that data waited because no buffer was there */
#define TOEBOX_COUNTER_RESPONSES_HELD           40 /* responses held because the output table was full */
#define TOEBOX_COUNTER_RESPONSES_ABANDONED      41
#define TOEBOX_COUNTER_REQUESTS_STALLED         42 /* passes ended because adapter memory for responses was full */
#define TOEBOX_COUNTER_REPORTS_WAITING          43
#define TOEBOX_COUNTER_MMIO_READS               44
#define TOEBOX_COUNTER_MMIO_WRITES              45
#define TOEBOX_COUNTER_MMIO_BAD_ACCESS          46
#define TOEBOX_COUNTER_MMIO_BAD_VALUE           47
#define TOEBOX_COUNTER_RESETS_FUNCTION          48 /* function-level, device and register resets */
#define TOEBOX_COUNTER_ATTRIBUTE_GETS           49 /* tuples */
#define TOEBOX_COUNTER_ATTRIBUTE_SETS           50 /* tuples */
#define TOEBOX_COUNTER_FRAMES_SENT              51
#define TOEBOX_COUNTER_FRAMES_RECEIVED          52
#define TOEBOX_COUNTER_FRAMES_DROPPED           53
#define TOEBOX_COUNTER_SEGMENTS_SENT            54
#define TOEBOX_COUNTER_SEGMENTS_RECEIVED        55
#define TOEBOX_COUNTER_RETRANSMITS              56
#define TOEBOX_COUNTER_MEMORY_USED              57 /* gauge */
#define TOEBOX_COUNTER_ARRIVALS_REFUSED         58 /* connections reset for want of memory or room */
#define TOEBOX_COUNTER_CHECKER_VIOLATIONS       59
#define TOEBOX_COUNTER_ORPHAN_BYTES             60 /* received bytes dropped because the host had closed */
#define TOEBOX_COUNTER_QUEUE_PASSES             61 /* times that a queue worker looked at its tables */
#define TOEBOX_COUNTER_QUEUE_WAKEUPS            62 /* times that it had slept before */
#define TOEBOX_COUNTER_COPIES_BYTES             63 /* payload bytes copied between engine and host memory */
#define TOEBOX_COUNTER_NOTICES                  64 /* completions and arrivals that waited to be told */
#define TOEBOX_COUNTER_NOTIFY_COUNT             65 /* releases by NOTIFY_COUNT */
#define TOEBOX_COUNTER_NOTIFY_AMOUNT            66
#define TOEBOX_COUNTER_NOTIFY_FIRST             67
#define TOEBOX_COUNTER_NOTIFY_LAST              68
#define TOEBOX_COUNTER_NOTIFY_CEILING           69 /* releases by a ceiling of time or bytes */
#define TOEBOX_COUNTER_NOTIFY_DYNAMIC           70
#define TOEBOX_COUNTER_NOTIFY_DATA              71
#define TOEBOX_COUNTER_NOTIFY_PATTERN           72
#define TOEBOX_COUNTER_NOTIFY_END               73 /* releases by the end of what the notice is about */
#define TOEBOX_COUNTER_REPORTS                  74 /* report buffers given back with records */
#define TOEBOX_COUNTER_REPORT_RECORDS           75 /* records in them */
#define TOEBOX_COUNTER_DATAGRAMS_SENT           76
#define TOEBOX_COUNTER_DATAGRAMS_DELIVERED      77
#define TOEBOX_COUNTER_DATAGRAMS_DROPPED        78 /* that came for an endpoint and were lost */
#define TOEBOX_COUNTER_DATAGRAMS_TRUNCATED      79
#define TOEBOX_COUNTER_DATAGRAMS_REFUSED        80 /* ICMP port unreachable, told to the host */
#define TOEBOX_COUNTER_STATE_RECORDS            81 /* state records written, whoever asked */
#define TOEBOX_COUNTER_CARRIED_OUT              82 /* connections handed over at an orderly stop */
#define TOEBOX_COUNTER_CARRIED_IN               83 /* connections restored */
#define TOEBOX_COUNTER_CARRY_REFUSED            84 /* connections that were to be handed over or restored, and were not */
#define TOEBOX_COUNTER_BUFFER_WAITS             85 /* waits for a buffer of the connection or its group (14.2) */
#define TOEBOX_COUNTER_BUFFER_WAITS_MET         86 /* of them, ended by such a buffer */
#define TOEBOX_COUNTER_BUFFER_WAITS_OVER        87 /* of them, ended by time */
#define TOEBOX_COUNTER_HISTORY_NONE             88 /* times that bytes did not wait because of the history */
#define TOEBOX_COUNTER_HISTORY_REDUCED          89 /* times that they waited less */
#define TOEBOX_COUNTER_TURNS_STARVED            90 /* turns given because a connection was starved, before one that would have come first */
#define TOEBOX_COUNTER_TURNS_EXPEDITED          91 /* turns given before others because of ASAP or EXPEDITED */
#define TOEBOX_COUNTER_TURNS_PRIORITY           92 /* turns given before others because of PRIORITY */
#define TOEBOX_COUNTER_GROUP_DELIVERIES         93 /* deliveries into buffers of a group (14.4) */
#define TOEBOX_COUNTER_POOL_MATCHES             94 /* choices of a bulk buffer by best match (14.5) */
#define TOEBOX_COUNTER_POOL_WHOLE               95 /* of them, those that take the bytes as a whole */
#define TOEBOX_COUNTER_BUFFER_TABLE_READS       96 /* DMA reads of BUFFER_TABLE */
#define TOEBOX_COUNTER_RECEIVE_WAITS            97 /* waits of received bytes that began (SPEC.md §14.6) */
#define TOEBOX_COUNTER_RECEIVE_BY_TIME          98 /* waits ended by NOTIFY_TIME */
#define TOEBOX_COUNTER_RECEIVE_BY_BYTES         99
#define TOEBOX_COUNTER_RECEIVE_BY_MAX           100
#define TOEBOX_COUNTER_RECEIVE_BY_ROOM          101 /* waits ended because buffers or half of the window were full */
#define TOEBOX_COUNTER_RECEIVE_BY_END           102 /* waits ended by the end of what they are about */
#define TOEBOX_COUNTER_TRANSFERS_MERGED         103 /* sends that were read, in whole or in part, by the DMA of the one before */
#define TOEBOX_COUNTER_DELAY_CWND               104 /* sends left in host memory because of the congestion window */
#define TOEBOX_COUNTER_DELAY_BANDWIDTH          105 /* because of the bandwidth-delay product */
#define TOEBOX_COUNTER_DELAY_MEMORY             106 /* because of adapter memory */
#define TOEBOX_COUNTER_DELAY_FAIRNESS           107 /* because of fairness */
#define TOEBOX_COUNTER_DELAY_CLASS              108 /* because of their class */
#define TOEBOX_COUNTER_DELAY_COUNT              109 /* lists of such sends run by DELAY_COUNT */
#define TOEBOX_COUNTER_DELAY_BYTES              110 /* run by DELAY_BYTES */
#define TOEBOX_COUNTER_DELAY_AGE                111 /* run by DELAY_AGE */
#define TOEBOX_COUNTER_DELAY_ASAP               112 /* run by an ASAP send */
#define TOEBOX_COUNTER_DELAY_OVER               113 /* connections that left the list because no criterion held any longer */
#define TOEBOX_COUNTER_COPIES_KEPT              114 /* copies of sends made */
#define TOEBOX_COUNTER_COPIES_FOUND             115 /* sends that found a copy */
#define TOEBOX_COUNTER_COPIES_EVICTED           116 /* copies given up for want of room */
#define TOEBOX_COUNTER_COPIES_DROPPED           117 /* copies dropped because of MODIFY, of a write into their memory, or of another mapping */
#define TOEBOX_COUNTER_BYTES_KEPT               118 /* payload bytes read into copies */
#define TOEBOX_COUNTER_GROUP_SENDS              119 /* sends made of sends to groups, one for each connection */
#define TOEBOX_COUNTER_READ_WAITS               120 /* times that received bytes waited for a read */
#define TOEBOX_COUNTER_RECEIVE_BY_ARRIVALS      121
#define TOEBOX_COUNTER_RECEIVE_BY_POSTS         122
#define TOEBOX_COUNTER_RECEIVE_BY_CONSUMPTION   123
#define TOEBOX_COUNTER_RECEIVE_BY_AMOUNTS       124
#define TOEBOX_COUNTER_GATHERED_UNITS           125 /* waits ended by a whole link transfer */
#define TOEBOX_COUNTER_GATHERED_PARTS           126 /* waits for one that ended by time */
#define TOEBOX_COUNTER_RESULTS_COMBINED         127 /* results of deliveries that a response covers, but the first of each */
#define TOEBOX_COUNTER_MEMORY_SHORT             128 /* times that adapter memory went above SPILL_THRESHOLD (14.9) */
#define TOEBOX_COUNTER_SPILLED_BYTES            129 /* bytes that went to bulk buffers while it was */
#define TOEBOX_COUNTER_WINDOWS_CLOSED           130 /* receive windows narrowed because of it */
#define TOEBOX_COUNTER_SEGMENTS_REFUSED         131 /* segments whose payload was dropped for want of adapter memory */
#define TOEBOX_COUNTER_FRAGMENTS                132 /* buffers given back before they were full because of FRAGMENT (14.10) */
#define TOEBOX_COUNTER_BACKLOG_DROPS            133 /* segments of callers dropped because the backlog was full */
#define TOEBOX_COUNTER_SKIPPED_BYTES            134 /* received bytes that were consumed without being delivered (14.11) */
#define TOEBOX_COUNTER_PEEKS                    135 /* buffers with bytes that were copied and not consumed (14.12) */
#define TOEBOX_COUNTER_PEEKED_BYTES             136 /* bytes in them */
#define TOEBOX_COUNTER_PEEKS_ANSWERED           137 /* waits after a peek, ended by a buffer of the connection or a redirection */
#define TOEBOX_COUNTER_PEEKS_OVER               138 /* of them, ended by time */
#define TOEBOX_COUNTER_REDIRECTED_BYTES         139 /* bytes delivered into buffers of another connection */
#define TOEBOX_COUNTER_REDIRECTS_OVER           140 /* redirections ended because there was no such buffer in time */
#define TOEBOX_COUNTER_NONTEMPORAL_BYTES        141 /* received bytes written by non-temporal stores (14.13) */
#define TOEBOX_COUNTER_PLACEMENTS_OVER          142 /* deliveries so written because of PLACEMENT_BUDGET */
#define TOEBOX_COUNTER_DELIVERIES_MERGED        143 /* deliveries that were written, in whole or in part, by the DMA of the one before */
#define TOEBOX_NUM_COUNTERS                     144

/* Rules. */
#define TOEBOX_CHECK_IN_REWRITTEN               1
#define TOEBOX_CHECK_IN_WITHDRAWN               2
#define TOEBOX_CHECK_OUT_OWNER                  3
#define TOEBOX_CHECK_OUT_WRITTEN                4
#define TOEBOX_CHECK_OUT_EARLY                  5
#define TOEBOX_CHECK_BELL_NOTHING               6
#define TOEBOX_CHECK_BELL_INDEX                 7
#define TOEBOX_CHECK_SEND_CHANGED               8
#define TOEBOX_CHECK_BUFFER_CHANGED             9
#define TOEBOX_CHECK_CONTROL_CHANGED            10
#define TOEBOX_CHECK_REPORT_OVERLAP             11

/* Places of a violation (SPEC.md §15). */
#define TOEBOX_PLACE_INPUT                      1
#define TOEBOX_PLACE_OUTPUT                     2
#define TOEBOX_PLACE_BUFFER                     3
#define TOEBOX_PLACE_CONTROL                    4

/* Kinds of events of a tag (SPEC.md §15). */
#define TOEBOX_TAG_SEEN                         1 /* seen in the table */
#define TOEBOX_TAG_TAKEN                        2
#define TOEBOX_TAG_ANSWERED                     3
#define TOEBOX_TAG_DONE                         4 /* its terminal response was made */

/* Sizes of the value of CHECKER_REPORT (SPEC.md §15). */
#define TOEBOX_CHECKER_HEADER_SIZE              16
#define TOEBOX_CHECKER_ENTRY_SIZE               160
#define TOEBOX_CHECKER_KEPT                     32 /* entries */
#define TOEBOX_CHECKER_TAG_EVENTS               4 /* of an entry */

/* Event block of a queue (SPEC.md §4.4), a word in each line of a cache. */
struct toebox_event_block {
	uint32_t in_published; /* written by the adapter */
	uint8_t pad0[60]; /* 0 */
	uint32_t out_published; /* written by the host */
	uint8_t pad1[60]; /* 0 */
	uint32_t in_freed; /* written by the host */
	uint8_t pad2[60]; /* 0 */
	uint32_t out_freed; /* written by the adapter */
	uint8_t pad3[60]; /* 0 */
};
TOEBOX_ASSERT(sizeof(struct toebox_event_block) == 256, "toebox_event_block");
TOEBOX_ASSERT(offsetof(struct toebox_event_block, in_published) == 0, "toebox_event_block.in_published");
TOEBOX_ASSERT(offsetof(struct toebox_event_block, pad0) == 4, "toebox_event_block.pad0");
TOEBOX_ASSERT(offsetof(struct toebox_event_block, out_published) == 64, "toebox_event_block.out_published");
TOEBOX_ASSERT(offsetof(struct toebox_event_block, pad1) == 68, "toebox_event_block.pad1");
TOEBOX_ASSERT(offsetof(struct toebox_event_block, in_freed) == 128, "toebox_event_block.in_freed");
TOEBOX_ASSERT(offsetof(struct toebox_event_block, pad2) == 132, "toebox_event_block.pad2");
TOEBOX_ASSERT(offsetof(struct toebox_event_block, out_freed) == 192, "toebox_event_block.out_freed");
TOEBOX_ASSERT(offsetof(struct toebox_event_block, pad3) == 196, "toebox_event_block.pad3");

/* Descriptor (SPEC.md §5), 32-byte aligned. Bytes 0-3 are stored whole, by one 32-bit store, last. */
struct toebox_descriptor {
	uint8_t type; /* bit 7 owner, bits 6..2 type, bit 1 ASAP, bit 0 MODIFY */
	uint8_t flags;
	uint16_t aux; /* status, number of tuples, or piece */
	uint32_t tag;
	uint64_t base;
	uint64_t conn; /* connection id */
	uint32_t length;
	uint32_t offset;
};
TOEBOX_ASSERT(sizeof(struct toebox_descriptor) == 32, "toebox_descriptor");
TOEBOX_ASSERT(offsetof(struct toebox_descriptor, type) == 0, "toebox_descriptor.type");
TOEBOX_ASSERT(offsetof(struct toebox_descriptor, flags) == 1, "toebox_descriptor.flags");
TOEBOX_ASSERT(offsetof(struct toebox_descriptor, aux) == 2, "toebox_descriptor.aux");
TOEBOX_ASSERT(offsetof(struct toebox_descriptor, tag) == 4, "toebox_descriptor.tag");
TOEBOX_ASSERT(offsetof(struct toebox_descriptor, base) == 8, "toebox_descriptor.base");
TOEBOX_ASSERT(offsetof(struct toebox_descriptor, conn) == 16, "toebox_descriptor.conn");
TOEBOX_ASSERT(offsetof(struct toebox_descriptor, length) == 24, "toebox_descriptor.length");
TOEBOX_ASSERT(offsetof(struct toebox_descriptor, offset) == 28, "toebox_descriptor.offset");

/* Head of a tuple in a control buffer (SPEC.md §6); the value follows, the next tuple at the next multiple of 8. */
struct toebox_tuple {
	uint16_t attribute; /* bit 15: set */
	uint16_t status; /* stored by the adapter */
	uint32_t length; /* of the value */
};
TOEBOX_ASSERT(sizeof(struct toebox_tuple) == 8, "toebox_tuple");
TOEBOX_ASSERT(offsetof(struct toebox_tuple, attribute) == 0, "toebox_tuple.attribute");
TOEBOX_ASSERT(offsetof(struct toebox_tuple, status) == 2, "toebox_tuple.status");
TOEBOX_ASSERT(offsetof(struct toebox_tuple, length) == 4, "toebox_tuple.length");

/* ADDRESS (SPEC.md §6.1), and the head of a datagram of an unconnected endpoint (§5.11). */
struct toebox_address {
	uint8_t family; /* 4 or 6; 0: none */
	uint8_t prefix;
	uint16_t port;
	uint8_t zero[4]; /* 0 */
	uint8_t address[16]; /* in network order; IPv4: the first 4 */
};
TOEBOX_ASSERT(sizeof(struct toebox_address) == 24, "toebox_address");
TOEBOX_ASSERT(offsetof(struct toebox_address, family) == 0, "toebox_address.family");
TOEBOX_ASSERT(offsetof(struct toebox_address, prefix) == 1, "toebox_address.prefix");
TOEBOX_ASSERT(offsetof(struct toebox_address, port) == 2, "toebox_address.port");
TOEBOX_ASSERT(offsetof(struct toebox_address, zero) == 4, "toebox_address.zero");
TOEBOX_ASSERT(offsetof(struct toebox_address, address) == 8, "toebox_address.address");

/* TARGET (SPEC.md §6.2). */
struct toebox_target {
	uint8_t protocol; /* 6 TCP, 17 UDP */
	uint8_t family; /* 4 or 6 */
	uint16_t count; /* consecutive ports */
	uint16_t local_port;
	uint16_t remote_port;
	uint8_t local[16];
	uint8_t remote[16];
	uint64_t time_limit; /* ns */
	uint32_t backlog;
	uint8_t zero[4]; /* 0 */
	uint64_t cookie;
};
TOEBOX_ASSERT(sizeof(struct toebox_target) == 64, "toebox_target");
TOEBOX_ASSERT(offsetof(struct toebox_target, protocol) == 0, "toebox_target.protocol");
TOEBOX_ASSERT(offsetof(struct toebox_target, family) == 1, "toebox_target.family");
TOEBOX_ASSERT(offsetof(struct toebox_target, count) == 2, "toebox_target.count");
TOEBOX_ASSERT(offsetof(struct toebox_target, local_port) == 4, "toebox_target.local_port");
TOEBOX_ASSERT(offsetof(struct toebox_target, remote_port) == 6, "toebox_target.remote_port");
TOEBOX_ASSERT(offsetof(struct toebox_target, local) == 8, "toebox_target.local");
TOEBOX_ASSERT(offsetof(struct toebox_target, remote) == 24, "toebox_target.remote");
TOEBOX_ASSERT(offsetof(struct toebox_target, time_limit) == 40, "toebox_target.time_limit");
TOEBOX_ASSERT(offsetof(struct toebox_target, backlog) == 48, "toebox_target.backlog");
TOEBOX_ASSERT(offsetof(struct toebox_target, zero) == 52, "toebox_target.zero");
TOEBOX_ASSERT(offsetof(struct toebox_target, cookie) == 56, "toebox_target.cookie");

/* TERMINATE (SPEC.md §6.3). */
struct toebox_terminate {
	uint64_t conn;
	uint32_t mode;
	uint8_t zero[4]; /* 0 */
};
TOEBOX_ASSERT(sizeof(struct toebox_terminate) == 16, "toebox_terminate");
TOEBOX_ASSERT(offsetof(struct toebox_terminate, conn) == 0, "toebox_terminate.conn");
TOEBOX_ASSERT(offsetof(struct toebox_terminate, mode) == 8, "toebox_terminate.mode");
TOEBOX_ASSERT(offsetof(struct toebox_terminate, zero) == 12, "toebox_terminate.zero");

/* CANCEL (SPEC.md §6.3). */
struct toebox_cancel {
	uint64_t conn;
	uint32_t tag;
	uint8_t zero[4]; /* 0 */
};
TOEBOX_ASSERT(sizeof(struct toebox_cancel) == 16, "toebox_cancel");
TOEBOX_ASSERT(offsetof(struct toebox_cancel, conn) == 0, "toebox_cancel.conn");
TOEBOX_ASSERT(offsetof(struct toebox_cancel, tag) == 8, "toebox_cancel.tag");
TOEBOX_ASSERT(offsetof(struct toebox_cancel, zero) == 12, "toebox_cancel.zero");

/* Record of a report buffer (SPEC.md §6.4). */
struct toebox_report {
	uint32_t tag;
	uint16_t status;
	uint8_t type;
	uint8_t flags;
	uint64_t conn;
	uint64_t cookie; /* or the listener's id */
	uint32_t ordinal;
	uint8_t family;
	uint8_t protocol;
	uint16_t local_port;
	uint16_t remote_port;
	uint8_t zero[6]; /* 0 */
	uint8_t remote[16];
	uint64_t uptime; /* ns */
};
TOEBOX_ASSERT(sizeof(struct toebox_report) == 64, "toebox_report");
TOEBOX_ASSERT(offsetof(struct toebox_report, tag) == 0, "toebox_report.tag");
TOEBOX_ASSERT(offsetof(struct toebox_report, status) == 4, "toebox_report.status");
TOEBOX_ASSERT(offsetof(struct toebox_report, type) == 6, "toebox_report.type");
TOEBOX_ASSERT(offsetof(struct toebox_report, flags) == 7, "toebox_report.flags");
TOEBOX_ASSERT(offsetof(struct toebox_report, conn) == 8, "toebox_report.conn");
TOEBOX_ASSERT(offsetof(struct toebox_report, cookie) == 16, "toebox_report.cookie");
TOEBOX_ASSERT(offsetof(struct toebox_report, ordinal) == 24, "toebox_report.ordinal");
TOEBOX_ASSERT(offsetof(struct toebox_report, family) == 28, "toebox_report.family");
TOEBOX_ASSERT(offsetof(struct toebox_report, protocol) == 29, "toebox_report.protocol");
TOEBOX_ASSERT(offsetof(struct toebox_report, local_port) == 30, "toebox_report.local_port");
TOEBOX_ASSERT(offsetof(struct toebox_report, remote_port) == 32, "toebox_report.remote_port");
TOEBOX_ASSERT(offsetof(struct toebox_report, zero) == 34, "toebox_report.zero");
TOEBOX_ASSERT(offsetof(struct toebox_report, remote) == 40, "toebox_report.remote");
TOEBOX_ASSERT(offsetof(struct toebox_report, uptime) == 56, "toebox_report.uptime");

/* BUFFER_TABLE (SPEC.md §7, MM16). */
struct toebox_buffer_table {
	uint64_t base;
	uint64_t entries;
};
TOEBOX_ASSERT(sizeof(struct toebox_buffer_table) == 16, "toebox_buffer_table");
TOEBOX_ASSERT(offsetof(struct toebox_buffer_table, base) == 0, "toebox_buffer_table.base");
TOEBOX_ASSERT(offsetof(struct toebox_buffer_table, entries) == 8, "toebox_buffer_table.entries");

/* Entry of the table that BUFFER_TABLE names. */
struct toebox_buffer_entry {
	uint64_t base;
	uint64_t length;
	uint64_t speed;
	uint64_t node;
	uint64_t group;
	uint64_t flags;
};
TOEBOX_ASSERT(sizeof(struct toebox_buffer_entry) == 48, "toebox_buffer_entry");
TOEBOX_ASSERT(offsetof(struct toebox_buffer_entry, base) == 0, "toebox_buffer_entry.base");
TOEBOX_ASSERT(offsetof(struct toebox_buffer_entry, length) == 8, "toebox_buffer_entry.length");
TOEBOX_ASSERT(offsetof(struct toebox_buffer_entry, speed) == 16, "toebox_buffer_entry.speed");
TOEBOX_ASSERT(offsetof(struct toebox_buffer_entry, node) == 24, "toebox_buffer_entry.node");
TOEBOX_ASSERT(offsetof(struct toebox_buffer_entry, group) == 32, "toebox_buffer_entry.group");
TOEBOX_ASSERT(offsetof(struct toebox_buffer_entry, flags) == 40, "toebox_buffer_entry.flags");

/* NOTIFY_PATTERN (SPEC.md §7, CE08); only `length` bytes of the pattern are there. */
struct toebox_notify_pattern {
	uint8_t mode; /* 0 off, 1 at the start, 2 end marker */
	uint8_t scope; /* 0 own, 1 all */
	uint16_t length;
	uint32_t bytes; /* ceiling */
	uint64_t time; /* ceiling, ns */
	uint8_t pattern[64];
};
TOEBOX_ASSERT(sizeof(struct toebox_notify_pattern) == 80, "toebox_notify_pattern");
TOEBOX_ASSERT(offsetof(struct toebox_notify_pattern, mode) == 0, "toebox_notify_pattern.mode");
TOEBOX_ASSERT(offsetof(struct toebox_notify_pattern, scope) == 1, "toebox_notify_pattern.scope");
TOEBOX_ASSERT(offsetof(struct toebox_notify_pattern, length) == 2, "toebox_notify_pattern.length");
TOEBOX_ASSERT(offsetof(struct toebox_notify_pattern, bytes) == 4, "toebox_notify_pattern.bytes");
TOEBOX_ASSERT(offsetof(struct toebox_notify_pattern, time) == 8, "toebox_notify_pattern.time");
TOEBOX_ASSERT(offsetof(struct toebox_notify_pattern, pattern) == 16, "toebox_notify_pattern.pattern");

/* Entry of HELD_BUFFERS (SPEC.md §7). */
struct toebox_held_buffer {
	uint32_t tag;
	uint32_t length;
	uint64_t base;
};
TOEBOX_ASSERT(sizeof(struct toebox_held_buffer) == 16, "toebox_held_buffer");
TOEBOX_ASSERT(offsetof(struct toebox_held_buffer, tag) == 0, "toebox_held_buffer.tag");
TOEBOX_ASSERT(offsetof(struct toebox_held_buffer, length) == 4, "toebox_held_buffer.length");
TOEBOX_ASSERT(offsetof(struct toebox_held_buffer, base) == 8, "toebox_held_buffer.base");

/* State record (SPEC.md §7.1, CE09). */
struct toebox_state_record {
	uint64_t conn;
	struct toebox_address local; /* an ADDRESS */
	struct toebox_address remote; /* an ADDRESS */
	uint32_t state;
	uint32_t protocol;
	uint64_t accepted; /* bytes */
	uint64_t sent;
	uint64_t acknowledged;
	uint64_t received;
	uint64_t delivered;
	uint32_t mss;
	uint32_t options;
	uint32_t send_window;
	uint32_t receive_window;
	uint64_t rtt; /* ns */
	uint64_t rto; /* ns */
	uint64_t timers;
	uint32_t send_sequence;
	uint32_t receive_sequence;
	uint8_t send_scale;
	uint8_t receive_scale;
	uint8_t zero[6]; /* 0 */
	uint64_t uptime; /* ns */
	uint32_t time; /* our time stamp, RFC 7323 */
	uint32_t recent_time; /* the peer's last */
	uint32_t flags; /* 1 EXACT */
	uint32_t unread; /* bytes that follow */
	uint8_t rest[8]; /* 0 */
};
TOEBOX_ASSERT(sizeof(struct toebox_state_record) == 192, "toebox_state_record");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, conn) == 0, "toebox_state_record.conn");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, local) == 8, "toebox_state_record.local");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, remote) == 32, "toebox_state_record.remote");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, state) == 56, "toebox_state_record.state");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, protocol) == 60, "toebox_state_record.protocol");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, accepted) == 64, "toebox_state_record.accepted");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, sent) == 72, "toebox_state_record.sent");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, acknowledged) == 80, "toebox_state_record.acknowledged");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, received) == 88, "toebox_state_record.received");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, delivered) == 96, "toebox_state_record.delivered");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, mss) == 104, "toebox_state_record.mss");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, options) == 108, "toebox_state_record.options");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, send_window) == 112, "toebox_state_record.send_window");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, receive_window) == 116, "toebox_state_record.receive_window");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, rtt) == 120, "toebox_state_record.rtt");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, rto) == 128, "toebox_state_record.rto");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, timers) == 136, "toebox_state_record.timers");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, send_sequence) == 144, "toebox_state_record.send_sequence");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, receive_sequence) == 148, "toebox_state_record.receive_sequence");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, send_scale) == 152, "toebox_state_record.send_scale");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, receive_scale) == 153, "toebox_state_record.receive_scale");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, zero) == 154, "toebox_state_record.zero");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, uptime) == 160, "toebox_state_record.uptime");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, time) == 168, "toebox_state_record.time");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, recent_time) == 172, "toebox_state_record.recent_time");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, flags) == 176, "toebox_state_record.flags");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, unread) == 180, "toebox_state_record.unread");
TOEBOX_ASSERT(offsetof(struct toebox_state_record, rest) == 184, "toebox_state_record.rest");

/* Default attribute in the non-volatile image. */
struct toebox_nvm_default {
	uint16_t attribute;
	uint8_t zero[6]; /* 0 */
	uint64_t value;
};
TOEBOX_ASSERT(sizeof(struct toebox_nvm_default) == 16, "toebox_nvm_default");
TOEBOX_ASSERT(offsetof(struct toebox_nvm_default, attribute) == 0, "toebox_nvm_default.attribute");
TOEBOX_ASSERT(offsetof(struct toebox_nvm_default, zero) == 2, "toebox_nvm_default.zero");
TOEBOX_ASSERT(offsetof(struct toebox_nvm_default, value) == 8, "toebox_nvm_default.value");

/* Non-volatile image (SPEC.md §10). */
struct toebox_nvm {
	uint8_t magic[8]; /* "TOENVM01" */
	uint32_t crc; /* CRC-32 (IEEE) of bytes 12..511 */
	uint32_t flags;
	uint8_t mac[6];
	uint16_t zero; /* 0 */
	uint8_t serial[32]; /* NUL padded */
	uint8_t firmware[64]; /* NUL padded */
	uint32_t ndefaults; /* at most 24 */
	uint32_t zero1; /* 0 */
	struct toebox_nvm_default defaults[24];
};
TOEBOX_ASSERT(sizeof(struct toebox_nvm) == 512, "toebox_nvm");
TOEBOX_ASSERT(offsetof(struct toebox_nvm, magic) == 0, "toebox_nvm.magic");
TOEBOX_ASSERT(offsetof(struct toebox_nvm, crc) == 8, "toebox_nvm.crc");
TOEBOX_ASSERT(offsetof(struct toebox_nvm, flags) == 12, "toebox_nvm.flags");
TOEBOX_ASSERT(offsetof(struct toebox_nvm, mac) == 16, "toebox_nvm.mac");
TOEBOX_ASSERT(offsetof(struct toebox_nvm, zero) == 22, "toebox_nvm.zero");
TOEBOX_ASSERT(offsetof(struct toebox_nvm, serial) == 24, "toebox_nvm.serial");
TOEBOX_ASSERT(offsetof(struct toebox_nvm, firmware) == 56, "toebox_nvm.firmware");
TOEBOX_ASSERT(offsetof(struct toebox_nvm, ndefaults) == 120, "toebox_nvm.ndefaults");
TOEBOX_ASSERT(offsetof(struct toebox_nvm, zero1) == 124, "toebox_nvm.zero1");
TOEBOX_ASSERT(offsetof(struct toebox_nvm, defaults) == 128, "toebox_nvm.defaults");

/* Offsets in BAR0 of what there is for each queue (SPEC.md §3). */
#define TOEBOX_REG_OF_QUEUE(q, reg) (TOEBOX_REG_QUEUE_BASE + TOEBOX_REG_QUEUE_STRIDE * (uint32_t)(q) + (reg))
#define TOEBOX_REG_IN_DOORBELL(q) (TOEBOX_REG_DOORBELLS + TOEBOX_DOORBELL_STRIDE * (uint32_t)(q))
#define TOEBOX_REG_OUT_DOORBELL(q) (TOEBOX_REG_IN_DOORBELL(q) + TOEBOX_DOORBELL_OUT)

/* Bytes 0-3 of a descriptor as one word, to be stored last (SPEC.md §4.2). */
static inline uint32_t toebox_word(uint8_t type, uint8_t flags, uint16_t aux, uint8_t bits)
{
	return (uint32_t)((type & 0x1fu) << 2 | bits) | (uint32_t)flags << 8 | (uint32_t)aux << 16;
}

/* Type of a descriptor with this word 0. */
static inline uint8_t toebox_word_type(uint32_t word)
{
	return (uint8_t)(word >> 2 & 0x1fu);
}

/* The event word that asks to be told when the slot with that index is done (SPEC.md §4.4). */
static inline uint32_t toebox_event_at(uint32_t index)
{
	return UINT32_C(1) << 30 | (index & TOEBOX_INDEX_MASK);
}

/* Whether a producer that went from one index to the next tells (SPEC.md §4.4). */
static inline int toebox_event_wants(uint32_t event, uint32_t old_index, uint32_t new_index)
{
	uint32_t made = (new_index - old_index) & TOEBOX_INDEX_MASK;

	if (made == 0 || event >> 30 == 0)
		return 0;
	if (event >> 30 != 1)
		return 1;
	return ((new_index - (event & TOEBOX_INDEX_MASK) - 1) & TOEBOX_INDEX_MASK) < made;
}

#endif /* TOEBOX_H */
