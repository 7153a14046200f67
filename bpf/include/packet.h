/* What the programs want to know of a packet: its family, its two addresses, and whether it is ESP. */
#ifndef KMESH_PACKET_H
#define KMESH_PACKET_H

#include "ipsec_maps.h"

/* Extension headers of IPv6 walked in search of ESP (RFC 8200 section 4.1 allows about as many in all). */
#define MAX_EXTENSION_HEADERS 6
#define EXTENSION_HEADER_UNIT 8
#define FRAGMENT_OFFSET_BITS 0xfff8

/* The first 8 bytes of the extension headers walked; none is shorter (RFC 8200 sections 4.3 to 4.6). */
struct extension_header {
	__u8 next;
	/* In units of 8 bytes, without the first; reserved in a fragment header. */
	__u8 length;
	/* Of a fragment header only; 0 in the upper 13 bits: the first fragment. */
	__be16 fragment_offset;
	__be32 rest;
};

enum family { NOT_IP, IS_IPV4, IS_IPV6, MALFORMED };

struct packet {
	enum family family;
	/* IPv4: protocol; IPv6: next header of the fixed header. */
	__u8 protocol;
	struct kmesh_addr4 src4, dst4;
	struct kmesh_addr6 src6, dst6;
};

/*
 * Reads from the network header on, so the same program serves Ethernet and devices without a link header (ipip),
 * and packets whose VLAN tag the kernel has put aside; and it works where the data is not linear.
 */
static __always_inline void read_packet(struct __sk_buff *skb, struct packet *packet)
{
	if (skb->protocol == __constant_htons(ETH_P_IP)) {
		struct iphdr ip;

		packet->family = MALFORMED;
		if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET) < 0)
			return;
		if (ip.version != 4 || ip.ihl < 5)
			return;
		packet->family = IS_IPV4;
		packet->protocol = ip.protocol;
		packet->src4.address = ip.saddr;
		packet->dst4.address = ip.daddr;
	} else if (skb->protocol == __constant_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		packet->family = MALFORMED;
		if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET) < 0)
			return;
		if (ip.version != 6)
			return;
		packet->family = IS_IPV6;
		packet->protocol = ip.nexthdr;
		__builtin_memcpy(&packet->src6, &ip.saddr, sizeof(packet->src6));
		__builtin_memcpy(&packet->dst6, &ip.daddr, sizeof(packet->dst6));
	} else {
		packet->family = NOT_IP;
	}
}

/*
 * Whether it is ESP, or a fragment of it: IPv4 fragments carry the protocol, and the IPv6 fragment header names ESP in
 * every fragment, not just the first. Behind the fragment header of a later one lies payload, so the walk ends there.
 */
static __always_inline bool is_esp(struct __sk_buff *skb, const struct packet *packet)
{
	__u8 next = packet->protocol;
	__u32 offset = sizeof(struct ipv6hdr);

	if (packet->family == IS_IPV4 || next == IPPROTO_ESP)
		return next == IPPROTO_ESP;
#pragma unroll
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		struct extension_header header;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT)
			break;
		if (bpf_skb_load_bytes_relative(skb, offset, &header, sizeof(header), BPF_HDR_START_NET) < 0)
			return false;
		if (next == IPPROTO_FRAGMENT) {
			if (header.fragment_offset & __constant_htons(FRAGMENT_OFFSET_BITS))
				return header.next == IPPROTO_ESP;
			header.length = 0;
		}
		offset += (header.length + 1) * EXTENSION_HEADER_UNIT;
		next = header.next;
	}
	return next == IPPROTO_ESP;
}

/* The bits of `clear` become those of `set`; all others are kept. */
static __always_inline void set_mark(struct __sk_buff *skb, __u32 clear, __u32 set)
{
	__u32 mark = (skb->mark & ~clear) | set;

	/* Else clang stores a single byte, which the verifier refuses: invalid bpf_context access size=1. */
	asm volatile("" : "+r"(mark));
	skb->mark = mark;
}

#endif
