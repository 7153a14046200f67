// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Ingress of every device that is no pod's. A packet comes by twice: as ESP, which gets its sender's node mark so that
 * the SAD can tell peers apart; and, decrypted, on the same device again with the mark that our SA laid on it. What was
 * decrypted and is for no pod of this node may be handed on to one of a third node: it asks to be encrypted again.
 *
 * Everything else is clear: a stale mark of ours is wiped off, and in strict mode what pretends to come from a managed
 * pod of another node to one of ours is dropped, and so is an ICMP error that quotes such a packet, or its answer. To an
 * address of this node too, where that pod's node would have encrypted it. What else such a pod sends in clear is marked
 * so: DNAT may turn it into a packet for one of ours, and then tc_pod_guard decides.
 */
#include "packet.h"

#define LOOPBACK_IFINDEX 1

static __always_inline int decrypted(struct __sk_buff *skb, struct packet *packet, __u32 mark)
{
	/* Seen again, on a device above the one that it came by. */
	if (mark == AGAIN)
		return TC_ACT_UNSPEC;
	if (!is_ip(packet) || !is(destination_pod(packet), KMESH_POD_LOCAL))
		set_mark(skb, OURS, AGAIN);
	count(skb, packet, KMESH_COUNT_DECRYPTED);
	return TC_ACT_UNSPEC;
}

static __always_inline int esp_of(struct __sk_buff *skb, const struct packet *packet, const struct kmesh_peer *peer)
{
	__u32 mask = KMESH_SETTING_NODE_MARK_MASK | OURS, wanted = peer->node_mark | DECRYPTED;

	/* It has the mark already on a bridge above the port that it came by. */
	if ((skb->mark & mask) != wanted) {
		set_mark(skb, mask, wanted);
		count(skb, packet, KMESH_COUNT_ESP_KNOWN_PEER);
	}
	return TC_ACT_UNSPEC;
}

enum clear { HARMLESS, UNDECIDED, CLEAR_TEXT };

/* Does it, in clear, speak for a managed pair, to our half of it? */
static __always_inline enum clear judge(struct __sk_buff *skb, struct packet *packet, const struct kmesh_pod *source)
{
	const struct kmesh_pod *destination = destination_pod(packet);

	if (is(destination, KMESH_POD_LOCAL))
		return is(source, KMESH_POD_REMOTE) || quoted_remote(skb, packet) ? CLEAR_TEXT : HARMLESS;
	if (!is(source, KMESH_POD_REMOTE))
		return HARMLESS;
	if (is(destination, KMESH_POD_OWN) && is_all(source, KMESH_POD_READY | KMESH_POD_PEER))
		return CLEAR_TEXT;
	return UNDECIDED;
}

/* Of a packet that was not decrypted. It is clear still on a device above the one that it came by. */
static __always_inline bool is_stale(__u32 mark, enum clear clear)
{
	return mark == ENCRYPT || mark == DECRYPTED || mark == AGAIN ||
	       (CLEAR != 0 && mark == CLEAR && clear != UNDECIDED);
}

/* On lo, and on a bridge above a pod's device, a mark is of this node's own making. */
static __always_inline bool may_be_marked(struct __sk_buff *skb, const struct kmesh_pod *source)
{
	return skb->ifindex == LOOPBACK_IFINDEX || is(source, KMESH_POD_LOCAL);
}

int tc_mark_decrypt(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct bpf_xfrm_state state = {};
	struct kmesh_pod *source = NULL;
	struct kmesh_peer *peer;
	enum clear clear = HARMLESS;
	int counter = -1, verdict = TC_ACT_UNSPEC;
	__u32 mark = skb->mark & OURS;

	read_packet(skb, &packet);
	if ((mark == DECRYPTED || mark == AGAIN) && was_ours(skb, &state))
		return decrypted(skb, &packet, mark);
	if (is_ip(&packet)) {
		walk_extensions(skb, &packet);
		if (packet.protocol == IPPROTO_ESP) {
			peer = source_peer(&packet);
			if (peer)
				return esp_of(skb, &packet, peer);
			counter = KMESH_COUNT_ESP_UNKNOWN_PEER;
		}
		source = source_pod(&packet);
		clear = judge(skb, &packet, source);
		if (clear == CLEAR_TEXT) {
			counter = KMESH_SETTING_STRICT ? KMESH_COUNT_DROPPED_CLEAR_TEXT : KMESH_COUNT_ALLOWED_CLEAR_TEXT;
			verdict = KMESH_SETTING_STRICT ? TC_ACT_SHOT : TC_ACT_UNSPEC;
		}
	} else if (packet.family == MALFORMED || packet.family == TOO_DEEP) {
		counter = KMESH_COUNT_PARSE_FAILURE;
		verdict = KMESH_SETTING_STRICT && packet.family == TOO_DEEP ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	}
	if (verdict != TC_ACT_SHOT && is_stale(mark, clear) && !may_be_marked(skb, source)) {
		set_mark(skb, OURS, 0);
		if (counter < 0)
			counter = KMESH_COUNT_STALE_MARK_CLEARED;
	}
	if (CLEAR != 0 && clear == UNDECIDED)
		set_mark(skb, OURS, CLEAR);
	if (counter >= 0)
		count(skb, &packet, counter);
	return verdict;
}
