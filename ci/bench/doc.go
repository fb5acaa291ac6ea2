// SPDX-License-Identifier: Apache-2.0

// Package bench measures the adapter beside a virtio-net-pci device: in one run, in
// one VM that has both, against one peer, the host.
//
//	host                                              guest
//	 ┌───────────────┐     tap, or user networking     ┌──────────────────────┐
//	 │ Peer          │<──── QEMU ── virtio-net-pci ────│ kernel TCP ┐         │
//	 │ (kernel TCP)  │<──── device ── keeper ── QEMU ──│ guestdriver┴─ agent  │
//	 └───────────────┘                                 └───────│──────────────┘
//	   Lab ── tasks, results, over virtio-serial ──────────────┘
//
// A [Case] is something that both devices do. [Measure] has them do it in turns, A B C
// A B C ..., and makes [Row]s of what came of it: each the medians of both sides, their
// spread, the median of the ratios of neighbouring runs, and a target if there is one.
// [Report] prints as a table, as JSON and as a page with a plot. A quick one is compared
// with published.json, whose ratios are the worst of 14 runs, most of them on a busy
// machine: what is worse than half of that is no noise.
//
// With privileges both devices are on tap devices in a network namespace of the
// benchmark's own, with all offloads, and only then do targets count; without, virtio is
// on QEMU's user networking and the adapter on its gateway.
//
// Times of processors come from /proc: those of the guest from its own, those of the
// device from the host's. A device's is what runs outside the virtual processors: the
// threads of QEMU that are none, and, of the adapter, keeper and device process.
package bench
