/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of linux/xfrm.h: what SAs and policies of ESP in tunnel mode with an AEAD take. */
#define XFRM_MSG_NEWSA ...
#define XFRM_MSG_DELSA ...
#define XFRM_MSG_GETSA ...
#define XFRM_MSG_NEWPOLICY ...
#define XFRM_MSG_UPDPOLICY ...
#define XFRM_MSG_DELPOLICY ...
#define XFRM_MSG_GETPOLICY ...
#define XFRM_MSG_UPDSA ...
#define XFRM_MSG_EXPIRE ...
#define XFRM_MSG_POLEXPIRE ...
#define XFRM_MSG_FLUSHSA ...
#define XFRM_MSG_FLUSHPOLICY ...
#define XFRM_MSG_NEWSPDINFO ...
#define XFRM_MSG_GETSPDINFO ...
#define XFRM_MSG_GETDEFAULT ...
#define XFRMGRP_SA ...
#define XFRMGRP_POLICY ...
#define XFRMGRP_EXPIRE ...

#define XFRMA_ALG_AEAD ...
#define XFRMA_TMPL ...
#define XFRMA_MARK ...
#define XFRMA_SET_MARK ...
#define XFRMA_SET_MARK_MASK ...
#define XFRMA_REPLAY_ESN_VAL ...
#define XFRMA_REPLAY_VAL ...
#define XFRMA_LASTUSED ...
#define XFRMA_SA ...
#define XFRMA_POLICY ...
#define XFRMA_IF_ID ...
#define XFRMA_POLICY_TYPE ...
#define XFRMA_SPD_IPV4_HTHRESH ...
#define XFRMA_SPD_IPV6_HTHRESH ...

#define XFRM_POLICY_IN ...
#define XFRM_POLICY_OUT ...
#define XFRM_POLICY_FWD ...
#define XFRM_POLICY_ALLOW ...
#define XFRM_POLICY_BLOCK ...
#define XFRM_POLICY_TYPE_SUB ...
#define XFRM_USERPOLICY_BLOCK ...
#define XFRM_MODE_TUNNEL ...
#define XFRM_STATE_AF_UNSPEC ...
#define XFRM_STATE_ESN ...
#define XFRMA_REPLAY_ESN_MAX ...
#define XFRM_INF ...

typedef union {
	__be32 a4;
	__be32 a6[4];
	...;
} xfrm_address_t;

struct xfrm_id {
	xfrm_address_t daddr;
	__be32 spi;
	__u8 proto;
	...;
};
struct xfrm_selector {
	xfrm_address_t daddr, saddr;
	__be16 dport, dport_mask, sport, sport_mask;
	__u16 family;
	__u8 prefixlen_d, prefixlen_s, proto;
	int ifindex;
	...;
};
struct xfrm_lifetime_cfg {
	__u64 soft_byte_limit, hard_byte_limit, soft_packet_limit, hard_packet_limit;
	...;
};
struct xfrm_lifetime_cur {
	__u64 bytes, packets, add_time, use_time;
};
struct xfrm_stats {
	__u32 replay_window, replay, integrity_failed;
};
struct xfrm_mark {
	__u32 v, m;
};
struct xfrm_algo_aead {
	char alg_name[64];
	unsigned int alg_key_len; /* in bits */
	unsigned int alg_icv_len; /* in bits */
	...;
};
struct xfrmu_spdhthresh {
	__u8 lbits, rbits;
};
struct xfrm_replay_state {
	__u32 oseq, seq;
	...;
};
struct xfrm_replay_state_esn {
	unsigned int bmp_len;
	__u32 oseq, seq, oseq_hi, seq_hi, replay_window;
	...;
};
struct xfrm_usersa_info {
	struct xfrm_selector sel;
	struct xfrm_id id;
	xfrm_address_t saddr;
	struct xfrm_lifetime_cfg lft;
	struct xfrm_lifetime_cur curlft;
	struct xfrm_stats stats;
	__u32 seq, reqid;
	__u16 family;
	__u8 mode, replay_window, flags;
	...;
};
struct xfrm_usersa_id {
	xfrm_address_t daddr;
	__be32 spi;
	__u16 family;
	__u8 proto;
	...;
};
struct xfrm_userpolicy_info {
	struct xfrm_selector sel;
	struct xfrm_lifetime_cfg lft;
	struct xfrm_lifetime_cur curlft;
	__u32 priority, index;
	__u8 dir, action, flags, share;
	...;
};
struct xfrm_userpolicy_id {
	struct xfrm_selector sel;
	__u32 index;
	__u8 dir;
	...;
};
struct xfrm_userpolicy_default {
	__u8 in, fwd, out;
};
struct xfrm_user_tmpl {
	struct xfrm_id id;
	__u16 family;
	xfrm_address_t saddr;
	__u32 reqid;
	__u8 mode, share, optional;
	__u32 aalgos, ealgos, calgos;
	...;
};
struct xfrm_user_expire {
	struct xfrm_usersa_info state;
	__u8 hard;
	...;
};
struct xfrm_user_polexpire {
	struct xfrm_userpolicy_info pol;
	__u8 hard;
	...;
};
