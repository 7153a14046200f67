/*
 * Look-ups that the programs share. A .c file, first of the one text that BCC compiles: BCC turns `map.lookup()` into
 * a helper call only in its main text, not in included headers.
 */
#include "packet.h"

static __always_inline struct kmesh_pod *source_pod(struct packet *packet)
{
	return packet->family == IS_IPV4 ? kmesh_pods4.lookup(&packet->src4) : kmesh_pods6.lookup(&packet->src6);
}

static __always_inline struct kmesh_pod *destination_pod(struct packet *packet)
{
	return packet->family == IS_IPV4 ? kmesh_pods4.lookup(&packet->dst4) : kmesh_pods6.lookup(&packet->dst6);
}

static __always_inline void count(__u32 counter)
{
	__u64 *value = kmesh_counters.lookup(&counter);

	if (value)
		*value += 1;
}
