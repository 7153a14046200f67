/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Our marks under this build's mask, and the proof of decryption that is none of them. */
#ifndef KMESH_MARKS_H
#define KMESH_MARKS_H

#include "ipsec_maps.h"

#define OURS KMESH_SETTING_MARK_MASK
#define ENCRYPT (KMESH_MARK_ENCRYPT & OURS)
#define DECRYPTED (KMESH_MARK_DECRYPTED & OURS)
#define AGAIN (KMESH_MARK_AGAIN & OURS)
/* 0 where no bit is left for it: then such answers are dropped. */
#define ANSWER (KMESH_MARK_ANSWER & OURS)
/* 0 where no bit is left to tell it from AGAIN: then a masquerade on this node hides who sent in clear. */
#define CLEAR ((KMESH_MARK_CLEAR & OURS) == AGAIN ? 0 : KMESH_MARK_CLEAR & OURS)

_Static_assert(ENCRYPT != 0 && DECRYPTED != 0 && ENCRYPT != DECRYPTED, "the mask leaves bits that tell marks apart");
_Static_assert(AGAIN != ENCRYPT && AGAIN != DECRYPTED, "and a third mark");

/* States that decrypted one packet: the kernel's XFRM_MAX_DEPTH. */
#define MAX_STATES 6

/* The bits of `clear` become those of `set`; all others are kept. */
static __always_inline void set_mark(struct __sk_buff *skb, __u32 clear, __u32 set)
{
	__u32 mark = (skb->mark & ~clear) | set;

	/* Else clang stores a single byte, which the verifier refuses: invalid bpf_context access size=1. */
	asm volatile("" : "+r"(mark));
	skb->mark = mark;
}

/*
 * Does the packet's security path hold an SA of ours? A mark is no proof of decryption: other software may use it too,
 * and an overlay device hands the outer packet's mark on to the inner one. Only the kernel's XFRM writes this path.
 */
static __always_inline bool was_ours(struct __sk_buff *skb, struct bpf_xfrm_state *state)
{
#pragma unroll
	for (int i = 0; i < MAX_STATES; i++) {
		if (bpf_skb_get_xfrm_state(skb, i, state, sizeof(*state), 0) < 0)
			return false;
		if (state->reqid == KMESH_REQID)
			return true;
	}
	return false;
}

#endif
