/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract header as clang reads it under BCC, and the maps: pinned by BCC, reused if already there.
 *
 * Settings come as -D from kmesh_bpf/kernel/bcc_loader.py:
 *   KMESH_SETTING_STRICT 0|1, KMESH_SETTING_NODE_MARK_MASK, KMESH_SETTING_MARK_MASK, KMESH_SETTING_MAX_PODS;
 *   KMESH_PIN(name) the path of a map.
 */
#ifndef KMESH_IPSEC_MAPS_H
#define KMESH_IPSEC_MAPS_H

#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/pkt_cls.h>

#include "ipsec_contract.h"

_Static_assert(sizeof(struct kmesh_addr4) == 4, "key of the IPv4 maps");
_Static_assert(sizeof(struct kmesh_addr6) == 16, "key of the IPv6 maps");
_Static_assert(sizeof(struct kmesh_cidr4) == 8, "LPM key: prefix length and address, no hole");
_Static_assert(sizeof(struct kmesh_cidr6) == 20, "LPM key: prefix length and address, no hole");
_Static_assert(sizeof(struct kmesh_peer) == 32, "no hole before the 64-bit members");
_Static_assert(sizeof(struct kmesh_identity) == 52, "no hole behind the last member");
_Static_assert((KMESH_SETTING_NODE_MARK_MASK & KMESH_MARK_MASK) == 0, "node ids stay out of the low byte");
_Static_assert((KMESH_SETTING_MARK_MASK & ~KMESH_MARK_MASK) == 0, "our marks stay in the low byte");

#ifndef BPF_F_NO_PREALLOC
#define BPF_F_NO_PREALLOC 1
#endif

/* Entries of the pod maps are allocated as they come: 262144 of them up front would be 35 MB on every idle node. */
BPF_TABLE_PINNED("hash", struct kmesh_addr4, struct kmesh_pod, kmesh_pods4, KMESH_SETTING_MAX_PODS,
		 KMESH_PIN(kmesh_pods4), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct kmesh_addr6, struct kmesh_pod, kmesh_pods6, KMESH_SETTING_MAX_PODS,
		 KMESH_PIN(kmesh_pods6), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct kmesh_addr4, struct kmesh_peer, kmesh_peers4, KMESH_MAX_PEERS,
		 KMESH_PIN(kmesh_peers4), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct kmesh_addr6, struct kmesh_peer, kmesh_peers6, KMESH_MAX_PEERS,
		 KMESH_PIN(kmesh_peers6), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct kmesh_cidr4, struct kmesh_service, kmesh_svcs4, KMESH_MAX_SERVICES,
		 KMESH_PIN(kmesh_svcs4), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct kmesh_cidr6, struct kmesh_service, kmesh_svcs6, KMESH_MAX_SERVICES,
		 KMESH_PIN(kmesh_svcs6), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct kmesh_addr4, struct kmesh_source, kmesh_srcs4, KMESH_MAX_LOCAL, KMESH_PIN(kmesh_srcs4),
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct kmesh_addr6, struct kmesh_source, kmesh_srcs6, KMESH_MAX_LOCAL, KMESH_PIN(kmesh_srcs6),
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", __u32, struct kmesh_device, kmesh_devices, KMESH_MAX_LOCAL, KMESH_PIN(kmesh_devices),
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", __u64, struct kmesh_former, kmesh_formers, KMESH_MAX_PEERS, KMESH_PIN(kmesh_formers),
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("percpu_array", __u32, __u64, kmesh_counters, KMESH_COUNTERS, KMESH_PIN(kmesh_counters));
BPF_TABLE_PINNED("array", __u32, struct kmesh_identity, kmesh_self, 1, KMESH_PIN(kmesh_self));

/* Of one build of the programs alone: no state of theirs outlives it. From Linux 5.8 on. */
#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif
BPF_ARRAY(kmesh_monitor, struct kmesh_sampling, 1);
BPF_RINGBUF_OUTPUT(kmesh_events, KMESH_RING_BYTES / PAGE_SIZE);
_Static_assert(sizeof(struct kmesh_event) == 48, "no hole");
_Static_assert(sizeof(struct kmesh_sampling) == 16, "no hole");

#endif
