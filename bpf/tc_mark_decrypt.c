/*
 * Ingress of uplinks. A packet comes by twice: as ESP, which gets its sender's node mark so that the SAD can tell
 * peers apart; and, decrypted, on the same device again with the mark that our SA laid on it.
 *
 * Everything else is clear: a stale mark of ours is wiped off, and in strict mode what pretends to come from a managed
 * pod of another node to one of ours is dropped. Counts one reason a packet: a drop or clear text before a stale mark.
 */
#include "packet.h"

/*
 * Did one of our SAs decrypt it? The mark alone is no proof: other software may use 0xd0, and an overlay device hands
 * the outer packet's mark on to the inner one. The packet's security path is: only the kernel's XFRM writes it.
 */
static __always_inline bool is_decrypted(struct __sk_buff *skb)
{
	struct bpf_xfrm_state state = {};

	if ((skb->mark & KMESH_MARK_MASK) != KMESH_MARK_DECRYPTED)
		return false;
	return bpf_skb_get_xfrm_state(skb, 0, &state, sizeof(state), 0) == 0 && state.reqid == KMESH_REQID;
}

static __always_inline bool is_managed_pair(struct packet *packet)
{
	struct kmesh_pod *pod = source_pod(packet);

	if (!pod || !(pod->flags & KMESH_POD_REMOTE))
		return false;
	pod = destination_pod(packet);
	return pod && (pod->flags & KMESH_POD_LOCAL);
}

int tc_mark_decrypt(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct kmesh_peer *peer;
	int counter = -1, verdict = TC_ACT_UNSPEC;
	__u32 low = skb->mark & KMESH_MARK_MASK;

	if (is_decrypted(skb)) {
		count(KMESH_COUNT_DECRYPTED);
		return TC_ACT_UNSPEC;
	}
	read_packet(skb, &packet);
	if (packet.family == IS_IPV4 || packet.family == IS_IPV6) {
		if (is_esp(skb, &packet)) {
			peer = packet.family == IS_IPV4 ? kmesh_peers4.lookup(&packet.src4)
							: kmesh_peers6.lookup(&packet.src6);
			if (peer) {
				set_mark(skb, KMESH_SETTING_NODE_MARK_MASK | KMESH_MARK_MASK,
					 peer->node_mark | KMESH_MARK_DECRYPTED);
				count(KMESH_COUNT_ESP_KNOWN_PEER);
				return TC_ACT_UNSPEC;
			}
			counter = KMESH_COUNT_ESP_UNKNOWN_PEER;
		}
		if (is_managed_pair(&packet)) {
			counter = KMESH_SETTING_STRICT ? KMESH_COUNT_DROPPED_CLEAR_TEXT : KMESH_COUNT_ALLOWED_CLEAR_TEXT;
			verdict = KMESH_SETTING_STRICT ? TC_ACT_SHOT : TC_ACT_UNSPEC;
		}
	} else if (packet.family == MALFORMED) {
		counter = KMESH_COUNT_PARSE_FAILURE;
	}
	if (verdict != TC_ACT_SHOT && (low == KMESH_MARK_ENCRYPT || low == KMESH_MARK_DECRYPTED)) {
		set_mark(skb, KMESH_MARK_MASK, 0);
		if (counter < 0)
			counter = KMESH_COUNT_STALE_MARK_CLEARED;
	}
	if (counter >= 0)
		count(counter);
	return verdict;
}
