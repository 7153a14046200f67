/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What an IP packet carries: ESP, an ICMP error and the packet that it quotes, or another packet as it is. */
#ifndef KMESH_PAYLOAD_H
#define KMESH_PAYLOAD_H

#include "packet.h"

/* Extension headers of IPv6 walked (RFC 8200 section 4.1 allows about as many in all). */
#define MAX_EXTENSION_HEADERS 6
#define EXTENSION_HEADER_UNIT 8
#define FRAGMENT_OFFSET_BITS 0xfff8

/* The first 8 bytes of the extension headers walked; none is shorter (RFC 8200 sections 4.3 to 4.6). */
struct extension_header {
	__u8 next;
	/* In units of 8 bytes, without the first; reserved in a fragment header. */
	__u8 length;
	union {
		/* Of a fragment header only; 0 in the upper 13 bits: the first fragment. */
		__be16 fragment_offset;
		/* Of a routing header only. */
		struct {
			__u8 type, segments_left;
		} routing;
	};
	__be32 rest;
};

/* Of a routing header whose segments stand in reverse order (RFC 8754 section 2): the last one first. */
#define SEGMENT_ROUTING 4

/* RFC 8986 section 10.2; clang's headers do not know it. */
#define CARRIES_ETHERNET 143

/* RFC 2784, 2890: flags of what else stands behind the first 4 bytes, and how many bytes each of that has. */
#define GRE_CHECKSUM 0x8000
#define GRE_KEY 0x2000
#define GRE_NUMBER 0x1000
#define GRE_FIELD 4

struct gre_header {
	__be16 flags, type;
};

/* The header of each ICMP message (RFC 792, RFC 4443 section 2.1); of an error, the quoted packet comes next. */
struct icmp_header {
	__u8 type, code;
	__be16 checksum;
	__be32 more;
};

/*
 * Finds what is behind the extension headers of an IPv6 packet. IPv4 fragments carry the protocol, and the fragment
 * header names ESP in every fragment, not just the first; behind that of a later one lies payload, so the walk ends
 * there. It ends too where the packet is cut, with no protocol, and at the limit, with an extension header's.
 */
static __always_inline void walk_extensions(struct __sk_buff *skb, struct packet *packet)
{
	if (packet->family != IS_IPV6)
		return;
#pragma unroll
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		struct extension_header header;
		__u8 here = packet->protocol;

		if (here != IPPROTO_HOPOPTS && here != IPPROTO_ROUTING && here != IPPROTO_DSTOPTS &&
		    here != IPPROTO_FRAGMENT)
			return;
		packet->protocol = IPPROTO_NONE;
		if (load(skb, packet->start, packet->offset + packet->payload, &header, sizeof(header)) < 0)
			return;
		packet->protocol = header.next;
		if (here == IPPROTO_FRAGMENT) {
			packet->is_rest = (header.fragment_offset & __constant_htons(FRAGMENT_OFFSET_BITS)) != 0;
			if (packet->is_rest)
				return;
			header.length = 0;
		} else if (here == IPPROTO_ROUTING && header.routing.segments_left && header.length >= 2) {
			packet->last = packet->payload + EXTENSION_HEADER_UNIT;
			if (header.routing.type != SEGMENT_ROUTING)
				packet->last += (header.length - 2) * EXTENSION_HEADER_UNIT;
		}
		packet->payload += (header.length + 1) * EXTENSION_HEADER_UNIT;
	}
}

/* RFC 792: unreachable, source quench, redirect, time exceeded, parameter problem. RFC 4443 section 3: all that quote. */
static __always_inline bool is_error(enum family family, __u8 type)
{
	if (family == IS_IPV4)
		return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
	return type >= 1 && type <= 4;
}

/*
 * Reads the addresses of the packet that an ICMP error quotes; false: it is none, or quotes less than these. They stand
 * at fixed places, whatever options follow.
 */
static __always_inline bool read_quoted(struct __sk_buff *skb, const struct packet *packet, struct packet *quoted)
{
	__u8 icmp = packet->family == IS_IPV4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	__u32 at = packet->offset + packet->payload;
	struct icmp_header header;

	if (packet->protocol != icmp || packet->is_rest)
		return false;
	if (load(skb, packet->start, at, &header, sizeof(header)) < 0 || !is_error(packet->family, header.type))
		return false;
	at += sizeof(header);
	if (packet->family == IS_IPV4) {
		struct iphdr ip;

		if (load(skb, packet->start, at, &ip, sizeof(ip)) < 0)
			return false;
		set_ipv4(quoted, &ip);
	} else {
		struct ipv6hdr ip;

		if (load(skb, packet->start, at, &ip, sizeof(ip)) < 0)
			return false;
		set_ipv6(quoted, &ip);
	}
	return true;
}

/* Reads the IP header at an offset, of whichever version it says that it is. */
static __always_inline bool read_at(struct __sk_buff *skb, __u32 start, __u32 at, struct packet *found)
{
	struct iphdr ip;
	struct ipv6hdr ip6;

	if (load(skb, start, at, &ip, sizeof(ip)) < 0)
		return false;
	if (ip.version == 4) {
		set_ipv4(found, &ip);
		return true;
	}
	if (ip.version != 6 || load(skb, start, at, &ip6, sizeof(ip6)) < 0)
		return false;
	set_ipv6(found, &ip6);
	return true;
}

/*
 * Reads the addresses of the packet that a packet carries in clear (RFC 2003, 2473, 2784, 8986); false: it carries none.
 * Tunnels that are devices are guarded as such; a route that wraps packets (encap seg6, encap bpf) is none, and XFRM
 * sees what it has made of them.
 */
static __always_inline bool read_carried(struct __sk_buff *skb, const struct packet *packet, struct packet *carried)
{
	__u32 at = packet->offset + packet->payload;
	__be16 type = __constant_htons(ETH_P_IP);
	__u8 protocol = packet->protocol;

	if (packet->is_rest)
		return false;
	if (protocol == IPPROTO_GRE) {
		struct gre_header gre;

		if (load(skb, packet->start, at, &gre, sizeof(gre)) < 0)
			return false;
		at += sizeof(gre);
		at += gre.flags & __constant_htons(GRE_CHECKSUM) ? GRE_FIELD : 0;
		at += gre.flags & __constant_htons(GRE_KEY) ? GRE_FIELD : 0;
		at += gre.flags & __constant_htons(GRE_NUMBER) ? GRE_FIELD : 0;
		type = gre.type;
		if (type == __constant_htons(ETH_P_TEB))
			protocol = CARRIES_ETHERNET;
	}
	if (protocol == CARRIES_ETHERNET) {
		if (load(skb, packet->start, at + __builtin_offsetof(struct ethhdr, h_proto), &type, sizeof(type)) < 0)
			return false;
		at += sizeof(struct ethhdr);
	} else if (protocol != IPPROTO_IPIP && protocol != IPPROTO_IPV6 && protocol != IPPROTO_GRE) {
		return false;
	}
	if (type != __constant_htons(ETH_P_IP) && type != __constant_htons(ETH_P_IPV6))
		return false;
	return read_at(skb, packet->start, at, carried);
}

/* Reads where a routing header leads the packet at last; false: it leads nowhere else. */
static __always_inline bool read_last(struct __sk_buff *skb, const struct packet *packet, struct packet *led)
{
	if (packet->last == 0)
		return false;
	led->family = packet->family;
	led->src6 = packet->src6;
	return load(skb, packet->start, packet->offset + packet->last, &led->dst6, sizeof(led->dst6)) == 0;
}

#endif
