// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Look-ups that the programs share. A .c file, first of the one text that BCC compiles: BCC turns `map.lookup()` into
 * a helper call only in its main text, not in included headers.
 */
#include "marks.h"
#include "packet.h"
#include "payload.h"

/*
 * Keeps clang from making one call of two, with a map chosen before: the verifier replaces a look-up by the map's own,
 * a direct call, only where the map is known.
 */
#define APART asm volatile("")

static __always_inline struct kmesh_pod *source_pod(struct packet *packet)
{
	struct kmesh_pod *found;

	if (packet->family != IS_IPV4)
		return kmesh_pods6.lookup(&packet->src6);
	found = kmesh_pods4.lookup(&packet->src4);
	APART;
	return found;
}

static __always_inline struct kmesh_pod *destination_pod(struct packet *packet)
{
	struct kmesh_pod *found;

	if (packet->family != IS_IPV4)
		return kmesh_pods6.lookup(&packet->dst6);
	found = kmesh_pods4.lookup(&packet->dst4);
	APART;
	return found;
}

static __always_inline struct kmesh_peer *source_peer(struct packet *packet)
{
	struct kmesh_peer *found;

	if (packet->family != IS_IPV4)
		return kmesh_peers6.lookup(&packet->src6);
	found = kmesh_peers4.lookup(&packet->src4);
	APART;
	return found;
}

/* The device that the source is bound to; NULL: none. */
static __always_inline struct kmesh_source *source_device(struct packet *packet)
{
	struct kmesh_source *found;

	if (packet->family != IS_IPV4)
		return kmesh_srcs6.lookup(&packet->src6);
	found = kmesh_srcs4.lookup(&packet->src4);
	APART;
	return found;
}

static __always_inline bool is_service(struct packet *packet)
{
	bool found;

	if (packet->family == IS_IPV4) {
		struct kmesh_cidr4 key = { .prefix_length = 32, .address = packet->dst4 };

		found = kmesh_svcs4.lookup(&key) != NULL;
		APART;
	} else {
		struct kmesh_cidr6 key = { .prefix_length = 128, .address = packet->dst6 };

		found = kmesh_svcs6.lookup(&key) != NULL;
	}
	return found;
}

static __always_inline bool is(const struct kmesh_pod *pod, __u32 flag)
{
	return pod && (pod->flags & flag);
}

static __always_inline bool is_all(const struct kmesh_pod *pod, __u32 flags)
{
	return pod && (pod->flags & flags) == flags;
}

/*
 * Where an ICMP error quotes a packet between a managed pod of this node and one of another, whichever way round: that
 * other one. NULL: it is no such error.
 */
static __always_inline struct kmesh_pod *quoted_remote(struct __sk_buff *skb, const struct packet *packet)
{
	struct packet quoted = {};
	struct kmesh_pod *source, *destination;

	if (!read_quoted(skb, packet, &quoted))
		return NULL;
	source = source_pod(&quoted);
	destination = destination_pod(&quoted);
	if (is(source, KMESH_POD_LOCAL) && is(destination, KMESH_POD_REMOTE))
		return destination;
	if (is(source, KMESH_POD_REMOTE) && is(destination, KMESH_POD_LOCAL))
		return source;
	return NULL;
}

static __always_inline void count(__u32 counter)
{
	__u64 *value = kmesh_counters.lookup(&counter);

	if (value)
		*value += 1;
}
