/*
 * Egress of uplinks, the last look at a packet: what should have been encrypted and is not does not leave.
 *
 * It asks the pod map about the packet as it leaves, after DNAT and SNAT, so it holds whatever happened to XFRM: a
 * flushed policy, a masquerade rule. ESP of ours passes because nodes, not pods, stand in its outer header. There is
 * no exception for ESP as such: a pod that speaks ESP itself must not slip through.
 */
#include "packet.h"

static __always_inline int guard(struct __sk_buff *skb, bool leaves_node)
{
	struct packet packet = {};
	struct kmesh_pod *destination, *source;

	read_packet(skb, &packet);
	if (packet.family == MALFORMED)
		count(KMESH_COUNT_PARSE_FAILURE);
	if (packet.family != IS_IPV4 && packet.family != IS_IPV6)
		return TC_ACT_UNSPEC;

	destination = destination_pod(&packet);
	if (!destination || !(destination->flags & KMESH_POD_REMOTE))
		return TC_ACT_UNSPEC;
	if ((skb->mark & KMESH_MARK_MASK) != KMESH_MARK_ENCRYPT) {
		source = source_pod(&packet);
		if (!source || !(source->flags & KMESH_POD_LOCAL))
			return TC_ACT_UNSPEC;
	}
	if (!KMESH_SETTING_STRICT && !(destination->flags & KMESH_POD_READY)) {
		count(KMESH_COUNT_ALLOWED_CLEAR_TEXT);
		return TC_ACT_UNSPEC;
	}
	count(KMESH_COUNT_DROPPED_BY_GUARD);
	return TC_ACT_SHOT;
}

int tc_leak_guard(struct __sk_buff *skb)
{
	return guard(skb, true);
}

/* Of devices whose packets stay on the node, or leave it by another device: bridges, lo. */
int tc_inner_guard(struct __sk_buff *skb)
{
	return guard(skb, false);
}
