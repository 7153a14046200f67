/*
 * What may stand in a frame between its type and the IP header: VLAN tags, MPLS labels, a PPPoE session's header.
 * The kernel puts a frame's outermost VLAN tag aside on ingress, and those behind it stay.
 */
#ifndef KMESH_TAGS_H
#define KMESH_TAGS_H

#include "packet.h"

/* Of all kinds together: a provider's and a customer's VLAN, a session, and five labels. */
#define MAX_TAGS 8

/* Of each header the last member tells what follows. */
struct vlan_tag {
	__be16 control, type;
};

/* RFC 2516 section 4; the protocol is PPP's. */
struct session_header {
	__u8 version_and_type, code;
	__be16 session, length;
	__u8 protocol[2];
};

/* RFC 3032 section 2.1: the bit of the last label of a stack. */
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
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_TAGS; i++) {
		if (is_vlan(type)) {
			struct vlan_tag tag;

			if (load(skb, packet->start, packet->offset, &tag, sizeof(tag)) < 0)
				goto cut;
			packet->offset += sizeof(tag);
			type = tag.type;
		} else if (is_label(type)) {
			struct {
				__be32 label;
				__u8 behind;
			} __attribute__((packed)) top;

			if (load(skb, packet->start, packet->offset, &top, sizeof(top)) < 0)
				goto cut;
			packet->offset += sizeof(top.label);
			if (top.label & __constant_htonl(LAST_LABEL))
				type = type_behind_labels(top.behind);
		} else if (type == __constant_htons(ETH_P_PPP_SES)) {
			struct session_header header;

			if (load(skb, packet->start, packet->offset, &header, sizeof(header)) < 0)
				goto cut;
			packet->offset += sizeof(header);
			/* An odd first byte is all there is of the number: compressed (RFC 1661 section 6.5). */
			if (header.protocol[0] & 1) {
				packet->offset -= 1;
				type = type_in_session(header.protocol[0]);
			} else {
				type = type_in_session(header.protocol[0] << 8 | header.protocol[1]);
			}
		} else {
			return type;
		}
	}
	if (is_tag(type))
		packet->family = TOO_DEEP;
	return type;
cut:
	packet->family = MALFORMED;
	return type;
}

#endif
