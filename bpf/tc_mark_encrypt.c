// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Ingress of pod devices: what a managed pod sends to an address that is, or that DNAT may turn into, a managed pod's of
 * another node gets the encrypt mark, whether that node is ready or not: the mark is a candidate, the policies decide on
 * the real destination, and the guard holds back what they do not select.
 *
 * Nobody sends as a managed pod but that pod: what bears its address and comes from elsewhere on the node is dropped.
 * Everything else is left untouched. Else always TC_ACT_UNSPEC: filters behind ours must still run.
 */
#include "packet.h"

#define LINK_LOCAL4 0xa9fe0000
#define LINK_LOCAL4_BITS 0xffff0000
#define LINK_LOCAL6 0xfe800000
#define LINK_LOCAL6_BITS 0xffc00000

/* What a device sends before it has its address, or beside it: unspecified and link-local sources. */
static __always_inline bool needs_no_binding(const struct packet *packet)
{
	const __be32 *words = (const __be32 *)&packet->src6;
	__be32 bits = 0;

	if (packet->family == IS_IPV4)
		return packet->src4.address == 0 || (packet->src4.address & __constant_htonl(LINK_LOCAL4_BITS)) ==
							    __constant_htonl(LINK_LOCAL4);
	if ((words[0] & __constant_htonl(LINK_LOCAL6_BITS)) == __constant_htonl(LINK_LOCAL6))
		return true;
#pragma unroll
	for (int i = 0; i < WORDS6; i++)
		bits |= words[i];
	return bits == 0;
}

static __always_inline bool is_spoofed(struct __sk_buff *skb, struct packet *packet, const struct kmesh_pod *source)
{
	struct kmesh_source *bound;
	__u32 device = skb->ifindex;

	if (is(source, KMESH_POD_REMOTE))
		return true;
	/* On the device of a pod that is not managed one look-up tells; of one that is, its binding does. */
	if (!is(source, KMESH_POD_LOCAL) && !kmesh_devices.lookup(&device))
		return false;
	bound = source_device(packet);
	if (bound && bound->ifindex == device)
		return false;
	if (bound && is(source, KMESH_POD_LOCAL))
		return true;
	return !needs_no_binding(packet) && (!is(source, KMESH_POD_LOCAL) || kmesh_devices.lookup(&device));
}

int tc_mark_encrypt(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct kmesh_pod *source, *destination;

	read_packet(skb, &packet);
	if (packet.family == MALFORMED || packet.family == TOO_DEEP)
		count(skb, &packet, KMESH_COUNT_PARSE_FAILURE);
	if (!is_ip(&packet))
		return TC_ACT_UNSPEC;

	source = source_pod(&packet);
	if (is_spoofed(skb, &packet, source)) {
		count(skb, &packet, KMESH_COUNT_DROPPED_SPOOFED);
		return TC_ACT_SHOT;
	}
	if (!is(source, KMESH_POD_LOCAL))
		return TC_ACT_UNSPEC;

	destination = destination_pod(&packet);
	if (destination ? is(destination, KMESH_POD_REMOTE | KMESH_POD_CANDIDATE) : is_service(&packet)) {
		set_mark(skb, OURS, ENCRYPT);
		count(skb, &packet, KMESH_COUNT_MARKED);
	} else {
		tell(skb, &packet, KMESH_DECISION_CLEAR);
	}
	return TC_ACT_UNSPEC;
}
