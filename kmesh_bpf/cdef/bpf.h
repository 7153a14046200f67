/* SPDX-License-Identifier: Apache-2.0 */
/* What kmesh_bpf/_bpf_calls.c offers; see there. */
#define KMESH_BPF_TCX_INGRESS ...
#define KMESH_BPF_TCX_EGRESS ...
#define KMESH_BPF_F_BEFORE ...

/* linux/bpf.h, enum bpf_map_type */
#define BPF_MAP_TYPE_HASH ...
#define BPF_MAP_TYPE_ARRAY ...
#define BPF_MAP_TYPE_PERCPU_ARRAY ...
#define BPF_MAP_TYPE_LPM_TRIE ...
#define BPF_MAP_TYPE_RINGBUF ...

struct kmesh_map_info {
	uint32_t type, key_size, value_size, max_entries;
};
struct kmesh_link_info {
	uint32_t id, prog_id, ifindex, attach_type;
};
struct kmesh_test_run {
	const void *packet;
	uint32_t packet_size;
	void *packet_out;
	uint32_t packet_out_size;
	uint32_t mark, ifindex, gso_size, gso_segs, repeat, verdict, duration_ns;
};

long kmesh_obj_get(const char *path);
long kmesh_obj_pin(const char *path, int fd);
long kmesh_map_lookup(int fd, const void *key, void *value);
long kmesh_map_update(int fd, const void *key, const void *value);
long kmesh_map_delete(int fd, const void *key);
long kmesh_map_next_key(int fd, const void *key, void *next);
long kmesh_map_lookup_batch(int fd, const void *in, void *out, void *keys, void *values, uint32_t *count);
long kmesh_map_update_batch(int fd, const void *keys, const void *values, uint32_t *count);
uint64_t kmesh_sum(const void *keys, uint32_t key_size, const void *values, uint32_t value_size, uint32_t count);
long kmesh_map_sum(int fd, const void *keys, uint32_t key_size, uint32_t value_size, uint32_t count, uint64_t *sum);
long kmesh_map_info(int fd, struct kmesh_map_info *found);
long kmesh_prog_id(int fd);
long kmesh_link_create(int prog_fd, int ifindex, int attach_type, uint32_t flags);
long kmesh_first_program(int ifindex, int attach_type);
long kmesh_programs_on(int ifindex, int attach_type, uint32_t *ids, uint32_t room);
long kmesh_link_detach(int link_fd);
long kmesh_link_update(int link_fd, int prog_fd);
long kmesh_link_info(int fd, struct kmesh_link_info *found);
long kmesh_prog_test_run(int fd, struct kmesh_test_run *run);
long kmesh_ring_take(void *consumer, const void *producer, uint32_t page, uint64_t bytes, void *records,
		     uint32_t size, uint32_t room);
long kmesh_is_bpffs(const char *path);
