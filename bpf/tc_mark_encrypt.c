/*
 * Ingress of pod devices: what a managed pod sends to a managed pod of a ready peer gets the encrypt mark.
 *
 * A packet to a Service address gets it too: DNAT comes later, and the XFRM policies select on the real destination.
 * Everything else is left untouched. Always TC_ACT_UNSPEC: filters behind ours must still run.
 */
#include "packet.h"

static __always_inline bool is_service(struct packet *packet)
{
	if (packet->family == IS_IPV4) {
		struct kmesh_cidr4 key = { .prefix_length = 32, .address = packet->dst4 };

		return kmesh_svcs4.lookup(&key) != NULL;
	}
	struct kmesh_cidr6 key = { .prefix_length = 128, .address = packet->dst6 };

	return kmesh_svcs6.lookup(&key) != NULL;
}

int tc_mark_encrypt(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct kmesh_pod *pod;

	read_packet(skb, &packet);
	if (packet.family == MALFORMED)
		count(KMESH_COUNT_PARSE_FAILURE);
	if (packet.family != IS_IPV4 && packet.family != IS_IPV6)
		return TC_ACT_UNSPEC;

	/* Traffic of pods that are not managed, most of it on most nodes, is done after this one lookup. */
	pod = source_pod(&packet);
	if (!pod || !(pod->flags & KMESH_POD_LOCAL))
		return TC_ACT_UNSPEC;

	pod = destination_pod(&packet);
	if (pod ? (pod->flags & KMESH_POD_READY) != 0 : is_service(&packet)) {
		set_mark(skb, KMESH_MARK_MASK, KMESH_MARK_ENCRYPT);
		count(KMESH_COUNT_MARKED);
	}
	return TC_ACT_UNSPEC;
}
