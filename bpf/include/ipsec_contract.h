/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * THE contract between the programs on TC and Python: every struct, constant and map that both sides use.
 *
 * Read by two compilers: clang (through ipsec_maps.h, which adds what a header usually has: guard, typedefs,
 * asserts) and cffi's cdef (kmesh_bpf/_build.py). cdef knows no preprocessor beyond `#define NAME number`,
 * so nothing else may stand here.
 *
 * Layout or meaning of a map entry changes -> raise KMESH_CONTRACT_VERSION: it is part of the path the maps are pinned at.
 */
#define KMESH_CONTRACT_VERSION 3

/*
 * skb marks. The low byte says what became, or is to become, of a packet; the rest is other people's. Of the two marks
 * bit 0x20 asks for encryption and bit 0x10 tells of decryption: a decrypted packet whose destination is no pod of this
 * node may have to be encrypted again, towards a third node, and carries both (0xf0). `--mark-mask` leaves a bit that
 * somebody else owns out of all of them (0x7f: 0x60, 0x50 and 0x70).
 */
#define KMESH_MARK_MASK 0x000000ff
#define KMESH_MARK_ENCRYPT 0x000000e0
#define KMESH_MARK_DECRYPTED 0x000000d0
#define KMESH_MARK_AGAIN 0x000000f0
/* Neither bit: what was decrypted, and as the answer to who asked this node in clear goes on to him (masquerade.py). */
#define KMESH_MARK_ANSWER 0x000000c0
/* Both bits and none that goes with them: came in clear from a managed pod of another node, for no managed pod as yet. */
#define KMESH_MARK_CLEAR 0x00000030

/*
 * Where a node id lies in the mark of an ESP packet between TC ingress and the SAD. The holes are other people's
 * bits: 0xf0000 Calico, 0x4000 and 0x8000 kube-proxy and kubelet, 0x2000 portmap. `--node-mark-mask` overrides it.
 */
#define KMESH_NODE_MARK_MASK 0xfff01f00
#define KMESH_NODE_ID_BITS 17

/* Tells our SAs and policies from everybody else's, together with the marks. */
#define KMESH_REQID 27501
/* Priority of our policies: smaller wins. Their selectors carry our mark, so they shadow nobody else's traffic. */
#define KMESH_POLICY_PRIORITY 100

/*
 * Where a classic TC filter of ours sits, on kernels without TCX (before 6.6): first. A filter of another CNI ahead of
 * it that answers TC_ACT_OK would get round encryption and the guard.
 */
#define KMESH_TC_PRIORITY 1
#define KMESH_TC_HANDLE 0x6b6d

/* Capacities; the first is a load-time setting, this its default. */
#define KMESH_MAX_PODS 262144
#define KMESH_MAX_PEERS 131072
#define KMESH_MAX_SERVICES 64
/* Managed pods of one node, and devices of theirs. */
#define KMESH_MAX_LOCAL 16384

/* Addresses are in network byte order. */
struct kmesh_addr4 {
	__u32 address;
};

struct kmesh_addr6 {
	__u8 address[16];
};

/* Keys of LPM tries: the kernel wants the prefix length (host order) first. */
struct kmesh_cidr4 {
	__u32 prefix_length;
	struct kmesh_addr4 address;
};

struct kmesh_cidr6 {
	__u32 prefix_length;
	struct kmesh_addr6 address;
};

/*
 * kmesh_pod.flags. LOCAL, REMOTE: a managed pod here, or on another node. CANDIDATE: no managed pod has the address, but
 * DNAT may turn it into one's (of a Service, of a node). OWN, with CANDIDATE: this node's. PEER, with REMOTE or
 * CANDIDATE: of a node that encrypts what it sends to nodes' own addresses, and takes it so; with REMOTE only if READY.
 * READY, with REMOTE or PEER: that node can decrypt. At most one of LOCAL, REMOTE and CANDIDATE.
 */
#define KMESH_POD_LOCAL 1
#define KMESH_POD_REMOTE 2
#define KMESH_POD_READY 4
#define KMESH_POD_CANDIDATE 8
#define KMESH_POD_PEER 16
#define KMESH_POD_OWN 32

struct kmesh_pod {
	__u32 flags;
};

struct kmesh_peer {
	__u32 node_id;
	/* node_id laid into KMESH_NODE_MARK_MASK (or its override) by Python: the program only ORs it in. */
	__u32 node_mark;
	/* Highest key version of which an outbound SA towards this peer was made, or is being made; 0: none yet. */
	__u32 spi;
	/* Highest key version of which the inbound SA was retired: neither it nor an older one is ever made again. */
	__u32 retired;
	/* Fingerprint of the two nodes, their addresses and incarnations, that node_id and the SAs were made for. */
	__u64 incarnations;
	/*
	 * Fingerprint of the tunnel: of the two addresses and incarnations that its keys are made of. Version 2 made it of
	 * the incarnations alone; 0: of version 1, which kept none.
	 */
	__u64 pair;
};

struct kmesh_service {
	__u32 reserved;
};

/* Where the packets of a managed pod of this node come from: the only device that may carry its address as source. */
struct kmesh_source {
	__u32 ifindex;
};

/* A device whose packets carry addresses of managed pods as source, and no others. */
struct kmesh_device {
	__u32 reserved;
};

/*
 * A tunnel (kmesh_peer.pair) whose keys were in use and whose SAs are gone: `spi` is the highest version. Of 0 is not
 * known which one it was.
 */
struct kmesh_former {
	__u32 spi;
};

/* What a node must remember about itself as long as its kernel objects live. */
struct kmesh_identity {
	__u32 contract_version;
	__u32 node_mark_mask;
	/* NUL-padded text, 36 characters. */
	char incarnation[40];
	/*
	 * The policy hash thresholds that were found, plus 1, before we lowered them (local and remote prefix length, IPv4
	 * and IPv6): put back on uninstall. 0: not lowered by us.
	 */
	__u8 found_local4, found_remote4, found_local6, found_remote6;
};

/*
 * Index of kmesh_counters. Each packet that passes a program raises at most one counter of that program; where several
 * would fit, the first of: decrypted, esp_known_peer, dropped_decrypted, dropped_spoofed, dropped_by_guard,
 * dropped_clear_text or allowed_clear_text, esp_unknown_peer, parse_failure, stale_mark_cleared, marked.
 */
enum kmesh_counter {
	KMESH_COUNT_MARKED,
	KMESH_COUNT_ESP_KNOWN_PEER,
	KMESH_COUNT_ESP_UNKNOWN_PEER,
	KMESH_COUNT_DECRYPTED,
	KMESH_COUNT_STALE_MARK_CLEARED,
	KMESH_COUNT_DROPPED_BY_GUARD,
	KMESH_COUNT_DROPPED_CLEAR_TEXT,
	KMESH_COUNT_DROPPED_DECRYPTED,
	KMESH_COUNT_DROPPED_SPOOFED,
	KMESH_COUNT_ALLOWED_CLEAR_TEXT,
	KMESH_COUNT_PARSE_FAILURE,
	KMESH_COUNTERS
};

/*
 * What `kmeshctl monitor` is told of a packet: what raised a counter (enum kmesh_counter), or what a managed pod of this
 * node sends in clear, as it should.
 */
#define KMESH_DECISION_CLEAR 255

struct kmesh_event {
	__u8 decision;
	/* 4 or 6; 0: no IP packet, or none that could be read, and no addresses. */
	__u8 family;
	/* What the IP header carries; IPv6: behind extension headers, where the program looks behind them. */
	__u8 protocol;
	__u8 reserved;
	__u32 ifindex;
	/* Bytes of the packet; of one that is yet to be cut up (GSO), of the whole. */
	__u32 length;
	__u32 mark;
	/* Network byte order; of IPv4 the first four bytes, and then zeros. */
	__u8 source[16];
	__u8 destination[16];
};

/*
 * Who is told: nobody before somebody asks, and nobody any more once `until` (CLOCK_MONOTONIC, ns) has passed, so that
 * one who was killed costs nothing. One packet of `one_of` is told, by chance; 0: none. `lost`: told in vain, the ring
 * was full.
 */
struct kmesh_sampling {
	__u64 until;
	__u32 one_of;
	__u32 lost;
};

/*
 * The maps: a struct a map, named like it; its members are the types of key and value.
 * pods4/6: hash, who is managed. peers4/6: hash, outer address -> node id. services4/6: LPM trie.
 * srcs4/6: hash, address of a managed pod of this node -> its device. devices: hash, by ifindex. formers: hash, by
 * kmesh_peer.pair. counters: per-CPU array. identity: array of one.
 */
struct kmesh_pods4 {
	struct kmesh_addr4 key;
	struct kmesh_pod value;
};

struct kmesh_pods6 {
	struct kmesh_addr6 key;
	struct kmesh_pod value;
};

struct kmesh_peers4 {
	struct kmesh_addr4 key;
	struct kmesh_peer value;
};

struct kmesh_peers6 {
	struct kmesh_addr6 key;
	struct kmesh_peer value;
};

struct kmesh_svcs4 {
	struct kmesh_cidr4 key;
	struct kmesh_service value;
};

struct kmesh_svcs6 {
	struct kmesh_cidr6 key;
	struct kmesh_service value;
};

struct kmesh_srcs4 {
	struct kmesh_addr4 key;
	struct kmesh_source value;
};

struct kmesh_srcs6 {
	struct kmesh_addr6 key;
	struct kmesh_source value;
};

struct kmesh_devices {
	__u32 key;
	struct kmesh_device value;
};

struct kmesh_formers {
	__u64 key;
	struct kmesh_former value;
};

struct kmesh_counters {
	__u32 key;
	__u64 value;
};

/* Array of one, and the ring; neither is kept when programs change, so they are pinned beside them. */
struct kmesh_monitor {
	__u32 key;
	struct kmesh_sampling value;
};

/* A ring has records and no keys; the member is there for what lays out all maps alike. */
struct kmesh_events {
	__u32 key;
	struct kmesh_event value;
};

/* Bytes of the ring: a power of two, of whole pages. */
#define KMESH_RING_BYTES 262144

struct kmesh_self {
	__u32 key;
	struct kmesh_identity value;
};
