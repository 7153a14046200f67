// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Egress of every device that is no pod's, the last look at a packet: what should have been encrypted and is not does
 * not leave, and what was decrypted does not leave again, whatever devices and routes have become meanwhile, but for
 * answers to who asked this node in clear.
 *
 * It asks the pod map about the packet as it leaves, after DNAT and SNAT, so it holds whatever happened to XFRM: a
 * flushed policy, a masquerade rule. ESP of ours passes because nodes, not pods, stand in its outer header. There is
 * no exception for ESP as such: a pod that speaks ESP itself must not slip through. And it looks into what carries
 * another packet as it is, for a route may wrap packets before XFRM sees them.
 */
#include "packet.h"

/*
 * An SA in the security path has decrypted the packet, but for one case: where the kernel encrypts late (esp4_offload,
 * esp6_offload), our ESP bears the SA that will encrypt it. Of that one the packet is ESP, from the SA's source.
 */
static __always_inline bool is_decrypted(const struct packet *packet, const struct bpf_xfrm_state *state)
{
	if (packet->protocol != IPPROTO_ESP)
		return true;
	if (packet->family == IS_IPV4)
		return packet->src4.address != state->remote_ipv4;

	const __u32 *source = (const __u32 *)&packet->src6;
	__u32 differing = 0;

#pragma unroll
	for (int i = 0; i < WORDS6; i++)
		differing |= source[i] ^ state->remote_ipv6[i];
	return differing != 0;
}

/* What is sent to a node that takes it encrypted: our own ESP, or what should have become that. */
static __always_inline bool is_missed(struct packet *packet, __u32 mark)
{
	return mark == ENCRYPT && (packet->protocol != IPPROTO_ESP || is(source_pod(packet), KMESH_POD_LOCAL));
}

/* The managed pod of another node, or that node, that the packet is sent to in clear and must not be; NULL: none. */
static __always_inline struct kmesh_pod *sent_to(struct packet *packet, struct kmesh_pod *destination, __u32 mark)
{
	if (is(destination, KMESH_POD_REMOTE) &&
	    (mark == ENCRYPT || mark == AGAIN || is(source_pod(packet), KMESH_POD_LOCAL)))
		return destination;
	if (is(destination, KMESH_POD_PEER) && is(destination, KMESH_POD_READY) && is_missed(packet, mark))
		return destination;
	return NULL;
}

/*
 * The answer to who asked this node's NodePort from outside, as connection tracking has found (masquerade.py), and for
 * nobody that we know. Everything else that was decrypted bears another mark.
 */
static __always_inline bool is_answer(const struct packet *packet, const struct kmesh_pod *destination, __u32 mark)
{
	return ANSWER != 0 && mark == ANSWER && is_ip(packet) && !destination;
}

enum leak { NONE, ALLOWED, FORBIDDEN };

/* Permissive: in clear rather than not at all, to a node that cannot decrypt. */
static __always_inline enum leak leak_to(const struct kmesh_pod *pod)
{
	if (!pod)
		return NONE;
	return KMESH_SETTING_STRICT || is(pod, KMESH_POD_READY) ? FORBIDDEN : ALLOWED;
}

/*
 * Nobody asks for encryption any more once a packet has been looked at. An overlay's device hands the mark of what it
 * carries on to the packet around it, and that goes to a node: it would be encrypted, and what comes back would not.
 */
static __always_inline int pass(struct __sk_buff *skb, bool leaves_node, __u32 mark)
{
	if (leaves_node && (mark == ENCRYPT || mark == AGAIN))
		set_mark(skb, OURS, 0);
	return TC_ACT_UNSPEC;
}

static __always_inline int guard(struct __sk_buff *skb, bool leaves_node)
{
	struct packet packet = {};
	struct bpf_xfrm_state state = {};
	struct kmesh_pod *destination = NULL;
	__u32 mark = skb->mark & OURS;
	enum leak leak;

	read_packet(skb, &packet);
	walk_extensions(skb, &packet);
	if (is_ip(&packet))
		destination = destination_pod(&packet);
	if (leaves_node && was_ours(skb, &state) && is_decrypted(&packet, &state) &&
	    !is_answer(&packet, destination, mark)) {
		count(skb, &packet, KMESH_COUNT_DROPPED_DECRYPTED);
		return TC_ACT_SHOT;
	}
	if (packet.family == MALFORMED || packet.family == TOO_DEEP) {
		count(skb, &packet, KMESH_COUNT_PARSE_FAILURE);
		return KMESH_SETTING_STRICT && packet.family == TOO_DEEP ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	}
	if (!is_ip(&packet))
		return TC_ACT_UNSPEC;

	leak = leak_to(sent_to(&packet, destination, mark));
	/* A pod behind a bridge is told of its own packets: that does not leave. */
	if (leak != FORBIDDEN && (leaves_node || !is(destination, KMESH_POD_LOCAL))) {
		enum leak told = leak_to(quoted_remote(skb, &packet));

		leak = told > leak ? told : leak;
	}
	if (leak != FORBIDDEN && leaves_node) {
		enum leak within = leak_to(carried_to(skb, &packet));

		leak = within > leak ? within : leak;
	}
	if (leak == NONE)
		return pass(skb, leaves_node, mark);
	count(skb, &packet, leak == FORBIDDEN ? KMESH_COUNT_DROPPED_BY_GUARD : KMESH_COUNT_ALLOWED_CLEAR_TEXT);
	return leak == FORBIDDEN ? TC_ACT_SHOT : pass(skb, leaves_node, mark);
}

int tc_leak_guard(struct __sk_buff *skb)
{
	return guard(skb, true);
}

/* Of devices whose packets stay on the node, or leave it by another device: bridges, lo, veths with both ends here. */
int tc_inner_guard(struct __sk_buff *skb)
{
	return guard(skb, false);
}
