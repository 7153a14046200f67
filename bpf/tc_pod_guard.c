// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Egress of pod devices, the last look at what a pod of this node is about to get, after DNAT: in clear nothing comes to
 * a managed one from one that is managed elsewhere, whatever address it was sent to and whatever device it came by.
 *
 * Its source tells, or the mark that tc_mark_decrypt has left on it, for masquerading may have changed the source. What
 * an SA of ours has decrypted has it in its security path.
 */
#include "packet.h"

static __always_inline bool came_in_clear(struct packet *packet, __u32 mark)
{
	return (CLEAR != 0 && mark == CLEAR) || is(source_pod(packet), KMESH_POD_REMOTE);
}

int tc_pod_guard(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct bpf_xfrm_state state = {};
	__u32 mark = skb->mark & OURS;

	read_packet(skb, &packet);
	if (packet.family == MALFORMED || packet.family == TOO_DEEP) {
		count(skb, &packet, KMESH_COUNT_PARSE_FAILURE);
		return KMESH_SETTING_STRICT && packet.family == TOO_DEEP ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	}
	if (!is_ip(&packet) || !came_in_clear(&packet, mark) || !is(destination_pod(&packet), KMESH_POD_LOCAL) ||
	    was_ours(skb, &state))
		return TC_ACT_UNSPEC;
	if (KMESH_SETTING_STRICT) {
		count(skb, &packet, KMESH_COUNT_DROPPED_CLEAR_TEXT);
		return TC_ACT_SHOT;
	}
	/* What came without this mark, tc_mark_decrypt has counted. */
	if (CLEAR != 0 && mark == CLEAR)
		count(skb, &packet, KMESH_COUNT_ALLOWED_CLEAR_TEXT);
	return TC_ACT_UNSPEC;
}
