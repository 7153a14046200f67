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

/* The managed pod of another node to which one of this node sends a packet; NULL: it does not. */
static __always_inline struct kmesh_pod *remote_of_local(struct packet *packet)
{
	struct kmesh_pod *destination = destination_pod(packet);

	return is(destination, KMESH_POD_REMOTE) && is(source_pod(packet), KMESH_POD_LOCAL) ? destination : NULL;
}

/* The same of a packet that carries another one in clear, or is led on by a routing header. */
static __always_inline struct kmesh_pod *carried_to(struct __sk_buff *skb, const struct packet *packet)
{
	struct packet other = {};
	struct kmesh_pod *destination = NULL;

	if (read_last(skb, packet, &other))
		destination = remote_of_local(&other);
	if (!destination && read_carried(skb, packet, &other))
		destination = remote_of_local(&other);
	return destination;
}

/* Told of by the ring, if anybody asks for it: what a program has decided on a packet. */
static __always_inline void tell(struct __sk_buff *skb, const struct packet *packet, __u8 decision)
{
	int first = 0;
	struct kmesh_sampling *asked = kmesh_monitor.lookup(&first);
	struct kmesh_event *event;

	if (!asked || __builtin_expect(asked->one_of == 0, 1))
		return;
	if (asked->one_of > 1 && bpf_get_prandom_u32() % asked->one_of != 0)
		return;
	if (bpf_ktime_get_ns() > asked->until)
		return;
	event = kmesh_events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		__sync_fetch_and_add(&asked->lost, 1);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->decision = decision;
	event->protocol = packet->protocol;
	event->ifindex = skb->ifindex;
	event->length = skb->len;
	event->mark = skb->mark;
	if (packet->family == IS_IPV4) {
		event->family = 4;
		__builtin_memcpy(event->source, &packet->src4, sizeof(packet->src4));
		__builtin_memcpy(event->destination, &packet->dst4, sizeof(packet->dst4));
	} else if (packet->family == IS_IPV6) {
		event->family = 6;
		__builtin_memcpy(event->source, &packet->src6, sizeof(packet->src6));
		__builtin_memcpy(event->destination, &packet->dst6, sizeof(packet->dst6));
	}
	/* Who reads looks by the clock: to wake him for each packet would cost more than all the rest. */
	kmesh_events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

static __always_inline void count(struct __sk_buff *skb, const struct packet *packet, __u32 counter)
{
	__u64 *value = kmesh_counters.lookup(&counter);

	if (value)
		*value += 1;
	tell(skb, packet, counter);
}
