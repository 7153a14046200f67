/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What may stand in a frame between its type and the IP header: VLAN tags, MPLS labels, a PPPoE session's header.
 * The kernel puts a frame's outermost VLAN tag aside on ingress, and those behind it stay.
 */
#ifndef KMESH_TAGS_H
#define KMESH_TAGS_H

#include "packet.h"

/* Of all kinds together: a provider's and a customer's VLAN, a session, and five labels. */
#define MAX_TAGS 8

/*
 * The first 8 bytes of any of them. A VLAN's (IEEE 802.1Q) has 4, type last; a label has 4 (RFC 3032), and then the
 * packet says itself what it is; a session's header (RFC 2516) has 6, and then comes PPP's protocol number.
 */
struct tag {
	__be16 control;
	__be16 type;
	__u8 behind_label, rest;
	__u8 protocol[2];
};

/* RFC 3032 section 2.1: in the lower half of a label, the bit of the last one of a stack. */
#define LAST_LABEL 0x100

static __always_inline bool is_vlan(__be16 type)
{
	return type == __constant_htons(ETH_P_8021Q) || type == __constant_htons(ETH_P_8021AD) ||
	       type == __constant_htons(ETH_P_QINQ1) || type == __constant_htons(ETH_P_QINQ2) ||
	       type == __constant_htons(ETH_P_QINQ3);
}

static __always_inline bool is_label(__be16 type)
{
	return type == __constant_htons(ETH_P_MPLS_UC) || type == __constant_htons(ETH_P_MPLS_MC);
}

static __always_inline bool is_tag(__be16 type)
{
	return is_vlan(type) || is_label(type) || type == __constant_htons(ETH_P_PPP_SES);
}

/* The Ethernet type for PPP's number (RFC 1332, 5072, 3032); 0: another one. */
static __always_inline __be16 type_in_session(__u16 protocol)
{
	switch (protocol) {
	case 0x0021:
		return __constant_htons(ETH_P_IP);
	case 0x0057:
		return __constant_htons(ETH_P_IPV6);
	case 0x0281:
		return __constant_htons(ETH_P_MPLS_UC);
	case 0x0283:
		return __constant_htons(ETH_P_MPLS_MC);
	}
	return 0;
}

/* Labels do not tell what follows them: routers look at its first four bits, and so do we. */
static __always_inline __be16 type_behind_labels(__u8 first)
{
	switch (first >> 4) {
	case 4:
		return __constant_htons(ETH_P_IP);
	case 6:
		return __constant_htons(ETH_P_IPV6);
	}
	return 0;
}

/*
 * Gives the type of what stands behind the tags, moves the packet's offset there, and its family away from NOT_IP if
 * they end too late or not at all.
 */
static __always_inline __be16 skip_tags(struct __sk_buff *skb, struct packet *packet, __be16 type)
{
	__be16 outermost = 0;

	/* On egress the network header may be behind VLAN tags already, or not: then only the frame's start is certain. */
	if (is_vlan(type) && load(skb, BPF_HDR_START_MAC, __builtin_offsetof(struct ethhdr, h_proto), &outermost, 2) == 0 &&
	    outermost == type) {
		packet->start = BPF_HDR_START_MAC;
		packet->offset = sizeof(struct ethhdr);
	}
#pragma unroll
	for (int i = 0; i < MAX_TAGS; i++) {
		struct tag tag;

		if (!is_tag(type))
			return type;
		if (load(skb, packet->start, packet->offset, &tag, sizeof(tag)) < 0) {
			packet->family = MALFORMED;
			return type;
		}
		if (is_vlan(type)) {
			packet->offset += 4;
			type = tag.type;
		} else if (is_label(type)) {
			packet->offset += 4;
			if (tag.type & __constant_htons(LAST_LABEL))
				type = type_behind_labels(tag.behind_label);
		} else if (tag.protocol[0] & 1) {
			/* An odd first byte is all there is of the number: compressed (RFC 1661 section 6.5). */
			packet->offset += 7;
			type = type_in_session(tag.protocol[0]);
		} else {
			packet->offset += 8;
			type = type_in_session(tag.protocol[0] << 8 | tag.protocol[1]);
		}
	}
	if (is_tag(type))
		packet->family = TOO_DEEP;
	return type;
}

#endif
