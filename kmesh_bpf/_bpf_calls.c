// SPDX-License-Identifier: Apache-2.0
/*
 * bpf(2), one function a command: each answers what the system call answers, or -errno.
 * Compiled into kmesh_bpf._abi (see _build.py), so that union bpf_attr is the system header's own.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <linux/bpf.h>
#include <linux/magic.h>

/* linux/bpf.h knows TCX since 6.6 only; the numbers are fixed (enum bpf_attach_type, BPF_F_BEFORE). */
#define KMESH_BPF_TCX_INGRESS 46
#define KMESH_BPF_TCX_EGRESS 47
#define KMESH_BPF_F_BEFORE (1U << 3)

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
	/* gso_size: bytes of payload a segment, 0: not a packet to be segmented. */
	/* ifindex 0: as if it came by lo. */
	uint32_t mark, ifindex, gso_size, gso_segs, repeat, verdict, duration_ns;
};

static long call(int command, union bpf_attr *attr)
{
	long answer = syscall(__NR_bpf, command, attr, sizeof(*attr));

	return answer < 0 ? -(long)errno : answer;
}

static uint64_t pointer(const void *p) { return (uint64_t)(uintptr_t)p; }

static long kmesh_obj_get(const char *path)
{
	union bpf_attr attr = { .pathname = pointer(path) };

	return call(BPF_OBJ_GET, &attr);
}

static long kmesh_obj_pin(const char *path, int fd)
{
	union bpf_attr attr = { .pathname = pointer(path), .bpf_fd = fd };

	return call(BPF_OBJ_PIN, &attr);
}

static long kmesh_map_lookup(int fd, const void *key, void *value)
{
	union bpf_attr attr = { .map_fd = fd, .key = pointer(key), .value = pointer(value) };

	return call(BPF_MAP_LOOKUP_ELEM, &attr);
}

static long kmesh_map_update(int fd, const void *key, const void *value)
{
	union bpf_attr attr = { .map_fd = fd, .key = pointer(key), .value = pointer(value), .flags = BPF_ANY };

	return call(BPF_MAP_UPDATE_ELEM, &attr);
}

static long kmesh_map_delete(int fd, const void *key)
{
	union bpf_attr attr = { .map_fd = fd, .key = pointer(key) };

	return call(BPF_MAP_DELETE_ELEM, &attr);
}

static long kmesh_map_next_key(int fd, const void *key, void *next)
{
	union bpf_attr attr = { .map_fd = fd, .key = pointer(key), .next_key = pointer(next) };

	return call(BPF_MAP_GET_NEXT_KEY, &attr);
}

/* *count: in, room; out, entries read. `in` NULL starts; -ENOENT: that was the last batch. */
static long kmesh_map_lookup_batch(int fd, const void *in, void *out, void *keys, void *values, uint32_t *count)
{
	union bpf_attr attr = { .batch = { .in_batch = pointer(in), .out_batch = pointer(out), .keys = pointer(keys),
					   .values = pointer(values), .count = *count, .map_fd = fd } };
	long answer = call(BPF_MAP_LOOKUP_BATCH, &attr);

	*count = attr.batch.count;
	return answer;
}

/* *count: in, how many to write; out, how many were. */
static long kmesh_map_update_batch(int fd, const void *keys, const void *values, uint32_t *count)
{
	union bpf_attr attr = { .batch = { .keys = pointer(keys), .values = pointer(values), .count = *count,
					   .map_fd = fd } };
	long answer = call(BPF_MAP_UPDATE_BATCH, &attr);

	*count = attr.batch.count;
	return answer;
}

#define KMESH_MAX_VALUE 256

static uint64_t spread(const unsigned char *bytes, uint32_t size, uint64_t sum)
{
	while (size--)
		sum = (sum ^ *bytes++) * 0x100000001b3ULL; /* FNV-1a */
	return sum;
}

static uint64_t number_of(const void *key, uint32_t key_size, const void *value, uint32_t value_size)
{
	uint64_t sum = spread(value, value_size, spread(key, key_size, 0xcbf29ce484222325ULL));

	/* MurmurHash3's last step: sums of such numbers do not cancel out where entries differ in few bits. */
	sum = (sum ^ (sum >> 33)) * 0xff51afd7ed558ccdULL;
	sum = (sum ^ (sum >> 33)) * 0xc4ceb9fe1a85ec53ULL;
	return sum ^ (sum >> 33);
}

/* The sum of a number for each entry, modulo 2^64: of any order, and an entry that comes or goes adds or takes its own. */
static uint64_t kmesh_sum(const void *keys, uint32_t key_size, const void *values, uint32_t value_size, uint32_t count)
{
	const unsigned char *key = keys, *value = values;
	uint64_t sum = 0;

	for (uint32_t i = 0; i < count; i++)
		sum += number_of(key + (size_t)i * key_size, key_size, value + (size_t)i * value_size, value_size);
	return sum;
}

/* The same of those of some keys that a map has an entry of. */
static long kmesh_map_sum(int fd, const void *keys, uint32_t key_size, uint32_t value_size, uint32_t count,
			  uint64_t *sum)
{
	const unsigned char *key = keys;
	unsigned char value[KMESH_MAX_VALUE];

	*sum = 0;
	if (value_size > sizeof(value))
		return -E2BIG;
	for (uint32_t i = 0; i < count; i++, key += key_size) {
		long answer = kmesh_map_lookup(fd, key, value);

		if (!answer)
			*sum += number_of(key, key_size, value, value_size);
		else if (answer != -ENOENT)
			return answer;
	}
	return 0;
}

static long kmesh_map_info(int fd, struct kmesh_map_info *found)
{
	struct bpf_map_info info = {};
	union bpf_attr attr = { .info = { .bpf_fd = fd, .info_len = sizeof(info), .info = pointer(&info) } };
	long answer = call(BPF_OBJ_GET_INFO_BY_FD, &attr);

	found->type = info.type;
	found->key_size = info.key_size;
	found->value_size = info.value_size;
	found->max_entries = info.max_entries;
	return answer;
}

static long kmesh_prog_id(int fd)
{
	struct bpf_prog_info info = {};
	union bpf_attr attr = { .info = { .bpf_fd = fd, .info_len = sizeof(info), .info = pointer(&info) } };
	long answer = call(BPF_OBJ_GET_INFO_BY_FD, &attr);

	return answer < 0 ? answer : (long)info.id;
}

static long kmesh_link_create(int prog_fd, int ifindex, int attach_type, uint32_t flags)
{
	union bpf_attr attr = { .link_create = { .prog_fd = prog_fd, .target_ifindex = ifindex,
						 .attach_type = attach_type, .flags = flags } };

	return call(BPF_LINK_CREATE, &attr);
}

/* 0: none runs there, or this kernel has no such chains. What does not fit is ENOSPC, and the first one has been told. */
static long kmesh_first_program(int ifindex, int attach_type)
{
	uint32_t id = 0;
	union bpf_attr attr = { .query = { .target_fd = ifindex, .attach_type = attach_type,
					   .prog_ids = pointer(&id), .prog_cnt = 1 } };
	long answer = call(BPF_PROG_QUERY, &attr);

	if (answer == -ENOENT || answer == -EINVAL || answer == -ENODEV)
		return 0;
	return answer < 0 && answer != -ENOSPC ? answer : (long)id;
}

/* How many run there, their numbers in `ids`; 64 fit into a chain (BPF_MPROG_MAX). */
static long kmesh_programs_on(int ifindex, int attach_type, uint32_t *ids, uint32_t room)
{
	union bpf_attr attr = { .query = { .target_fd = ifindex, .attach_type = attach_type,
					   .prog_ids = pointer(ids), .prog_cnt = room } };
	long answer = call(BPF_PROG_QUERY, &attr);

	if (answer == -ENOENT || answer == -EINVAL || answer == -ENODEV)
		return 0;
	return answer < 0 ? answer : (long)attr.query.prog_cnt;
}

static long kmesh_link_detach(int link_fd)
{
	union bpf_attr attr = { .link_detach = { .link_fd = link_fd } };

	return call(BPF_LINK_DETACH, &attr);
}

static long kmesh_link_update(int link_fd, int prog_fd)
{
	union bpf_attr attr = { .link_update = { .link_fd = link_fd, .new_prog_fd = prog_fd } };

	return call(BPF_LINK_UPDATE, &attr);
}

static long kmesh_link_info(int fd, struct kmesh_link_info *found)
{
	struct bpf_link_info info = {};
	union bpf_attr attr = { .info = { .bpf_fd = fd, .info_len = sizeof(info), .info = pointer(&info) } };
	long answer = call(BPF_OBJ_GET_INFO_BY_FD, &attr);

	found->id = info.id;
	found->prog_id = info.prog_id;
	/* struct { ifindex, attach_type } tcx (6.6) lies where struct { netns_ino, attach_type } netns does. */
	found->ifindex = info.netns.netns_ino;
	found->attach_type = info.netns.attach_type;
	return answer;
}

static long kmesh_prog_test_run(int fd, struct kmesh_test_run *run)
{
	struct __sk_buff in = { .mark = run->mark, .ifindex = run->ifindex, .gso_size = run->gso_size,
				.gso_segs = run->gso_segs }, out = {};
	union bpf_attr attr = { .test = { .prog_fd = fd, .data_in = pointer(run->packet), .data_size_in = run->packet_size,
					  .data_out = pointer(run->packet_out), .data_size_out = run->packet_out_size,
					  .repeat = run->repeat, .ctx_in = pointer(&in), .ctx_size_in = sizeof(in),
					  .ctx_out = pointer(&out), .ctx_size_out = sizeof(out) } };
	long answer = call(BPF_PROG_TEST_RUN, &attr);

	run->verdict = attr.test.retval;
	run->duration_ns = attr.test.duration;
	run->packet_out_size = attr.test.data_size_out;
	run->mark = out.mark;
	return answer;
}

/*
 * Takes records out of a BPF ring (Documentation/bpf/ringbuf.rst), `size` bytes each, at most `room` of them; gives how
 * many. `consumer` is the start of its first page, `producer` of the second; the data, of `bytes`, lies behind that one,
 * mapped twice in a row, so that no record is in two pieces. Of a record of another size nothing is taken.
 */
static long kmesh_ring_take(void *consumer, const void *producer, uint32_t page, uint64_t bytes, void *records,
			    uint32_t size, uint32_t room)
{
	uint64_t at = __atomic_load_n((uint64_t *)consumer, __ATOMIC_ACQUIRE);
	uint64_t end = __atomic_load_n((const uint64_t *)producer, __ATOMIC_ACQUIRE);
	unsigned char *record = records;
	uint32_t taken = 0;

	while (at < end && taken < room) {
		const unsigned char *header = (const unsigned char *)producer + page + (at & (bytes - 1));
		uint32_t word = __atomic_load_n((const uint32_t *)header, __ATOMIC_ACQUIRE);
		uint32_t length = word & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);

		if (word & BPF_RINGBUF_BUSY_BIT)
			break; /* being written */
		if (!(word & BPF_RINGBUF_DISCARD_BIT) && length == size) {
			memcpy(record, header + BPF_RINGBUF_HDR_SZ, size);
			record += size;
			taken++;
		}
		at += (length + BPF_RINGBUF_HDR_SZ + 7) & ~7ULL;
		__atomic_store_n((uint64_t *)consumer, at, __ATOMIC_RELEASE);
	}
	return taken;
}

/* 1: the path lies in bpffs, 0: in another file system. */
static long kmesh_is_bpffs(const char *path)
{
	struct statfs found;

	if (statfs(path, &found) < 0)
		return -(long)errno;
	/* f_type is signed and as wide as a word; the magic number has its top bit set. */
	return (uint32_t)found.f_type == BPF_FS_MAGIC;
}
