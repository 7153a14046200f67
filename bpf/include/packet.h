/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the programs want to know of a packet: its family, its two addresses, and where what it carries begins. */
#ifndef KMESH_PACKET_H
#define KMESH_PACKET_H

#include "ipsec_maps.h"

/* Bytes made readable besides those wanted: the link header, which offsets do not count, and what is wanted next. */
#define MORE_READABLE 256

/* TOO_DEEP: behind more tags than are looked through (tags.h). */
enum family { NOT_IP, IS_IPV4, IS_IPV6, MALFORMED, TOO_DEEP };

struct packet {
	enum family family;
	/* Where the IP header begins: so many bytes behind BPF_HDR_START_NET, or behind BPF_HDR_START_MAC. */
	__u32 start, offset;
	/* What the IP header carries (IPv6: behind extension headers, once payload.h has walked them), and how far behind. */
	__u32 payload;
	__u8 protocol;
	/* Of a fragment other than the first: no header stands where the payload begins. */
	bool is_rest;
	/* Where the last address of a routing header stands that is not used up, as far behind as payload; 0: there is none. */
	__u32 last;
	struct kmesh_addr4 src4, dst4;
	struct kmesh_addr6 src6 __attribute__((aligned(4))), dst6 __attribute__((aligned(4)));
};

/* Of 32 bits, in an IPv6 address. */
#define WORDS6 4

static __always_inline bool is_ip(const struct packet *packet)
{
	return packet->family == IS_IPV4 || packet->family == IS_IPV6;
}

/*
 * Copies from the packet; negative: it ends before. The helper sees the linear part only, and there a sender (vnet_hdr of
 * a packet socket) or a driver may leave as little as the Ethernet header, hence the second try.
 */
static __always_inline int load(struct __sk_buff *skb, __u32 start, __u32 offset, void *to, __u32 size)
{
	__u32 readable = offset + size + MORE_READABLE;

	if (bpf_skb_load_bytes_relative(skb, offset, to, size, start) == 0)
		return 0;
	if (bpf_skb_pull_data(skb, readable < skb->len ? readable : skb->len) < 0)
		return -1;
	return bpf_skb_load_bytes_relative(skb, offset, to, size, start);
}

static __always_inline void set_ipv4(struct packet *packet, const struct iphdr *ip)
{
	packet->family = IS_IPV4;
	packet->protocol = ip->protocol;
	packet->payload = ip->ihl * 4;
	packet->is_rest = (ip->frag_off & __constant_htons(0x1fff)) != 0;
	packet->src4.address = ip->saddr;
	packet->dst4.address = ip->daddr;
}

static __always_inline void set_ipv6(struct packet *packet, const struct ipv6hdr *ip)
{
	packet->family = IS_IPV6;
	packet->protocol = ip->nexthdr;
	packet->payload = sizeof(*ip);
	__builtin_memcpy(&packet->src6, &ip->saddr, sizeof(packet->src6));
	__builtin_memcpy(&packet->dst6, &ip->daddr, sizeof(packet->dst6));
}

#include "tags.h"

/*
 * Reads from the network header on, so the same program serves Ethernet and devices without a link header (ipip), and
 * packets whose VLAN tag the kernel has put aside.
 */
static __always_inline void read_packet(struct __sk_buff *skb, struct packet *packet)
{
	__be16 type = skb->protocol;

	packet->start = BPF_HDR_START_NET;
	if (__builtin_expect(is_tag(type), 0)) {
		type = skip_tags(skb, packet, type);
		if (packet->family != NOT_IP)
			return;
	}
	if (type == __constant_htons(ETH_P_IP)) {
		struct iphdr ip;

		packet->family = MALFORMED;
		if (load(skb, packet->start, packet->offset, &ip, sizeof(ip)) < 0)
			return;
		if (ip.version == 4 && ip.ihl >= 5)
			set_ipv4(packet, &ip);
	} else if (type == __constant_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		packet->family = MALFORMED;
		if (load(skb, packet->start, packet->offset, &ip, sizeof(ip)) < 0)
			return;
		if (ip.version == 6)
			set_ipv6(packet, &ip);
	}
}

#endif
