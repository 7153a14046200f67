// SPDX-License-Identifier: Apache-2.0
/*
 * What the entries of a hash add up to: a number for each entry, summed up in groups, modulo 2^64. In which group an entry
 * is, its key decides alone. Of any order; an entry that comes, goes or changes shows in its group's sum.
 *
 * The kernel adds up itself, by a program that bpf_for_each_map_elem (5.13) runs over the map: half of what it costs to
 * copy the entries out. It is put together here, for BCC loads no program with a function that a helper calls back.
 * Compiled into kmesh_bpf._abi, behind _bpf_calls.c.
 */
#include <stddef.h>
#include <stdlib.h>
#include <linux/btf.h>

#define KMESH_GROUPS 1024
#define KMESH_MAX_VALUE 256
#define SEED 0xcbf29ce484222325ULL
#define FACTOR 0x9e3779b97f4a7c15ULL
#define PORTION 4096

/* linux/bpf.h of Linux 5.10 knows neither. */
#define PSEUDO_FUNC 4
#define FOR_EACH_MAP_ELEM 164

/* Keys and values are whole words: the layouts of ipsec_contract.h. */
static uint64_t spread(const void *bytes, uint32_t size, uint64_t sum)
{
	const unsigned char *at = bytes;

	for (uint32_t i = 0; i < size; i += 4) {
		uint32_t word;

		memcpy(&word, at + i, 4);
		sum = (sum ^ word) * FACTOR;
		sum ^= sum >> 32;
	}
	return sum;
}

static uint32_t group_of(uint64_t key) { return key & (KMESH_GROUPS - 1); }

static uint64_t number_of(uint64_t key, const void *value, uint32_t value_size)
{
	uint64_t sum = spread(value, value_size, key) * FACTOR;

	return sum ^ sum >> 32;
}

/* Adds what a map has under some keys to its groups, or takes it off (sign -1). */
static long kmesh_follow(int fd, const void *keys, uint32_t key_size, uint32_t value_size, uint32_t count, int sign,
			 uint64_t *groups)
{
	const unsigned char *key = keys;
	unsigned char value[KMESH_MAX_VALUE];

	if (value_size > sizeof(value))
		return -E2BIG;
	for (uint32_t i = 0; i < count; i++, key += key_size) {
		long answer = kmesh_map_lookup(fd, key, value);
		uint64_t spread_key = spread(key, key_size, SEED);

		if (!answer)
			groups[group_of(spread_key)] += (uint64_t)sign * number_of(spread_key, value, value_size);
		else if (answer != -ENOENT)
			return answer;
	}
	return 0;
}

/* groups[i]: of the key i. */
static void kmesh_groups_of(const void *keys, uint32_t key_size, uint32_t count, uint16_t *groups)
{
	for (uint32_t i = 0; i < count; i++)
		groups[i] = group_of(spread((const unsigned char *)keys + (size_t)i * key_size, key_size, SEED));
}

/* Calls `each` with portions of a hash's entries. */
static long read_all(int fd, uint32_t key_size, uint32_t value_size,
		     long (*each)(void *, const unsigned char *, const unsigned char *, uint32_t), void *context)
{
	unsigned char *keys = malloc((size_t)PORTION * key_size), *values = malloc((size_t)PORTION * value_size);
	unsigned char place[64], following[64];
	const void *from = NULL;
	long answer = keys && values && key_size <= sizeof(place) ? 0 : -ENOMEM;

	while (!answer) {
		uint32_t count = PORTION;
		long taken;

		answer = kmesh_map_lookup_batch(fd, from, following, keys, values, &count);
		if (answer && answer != -ENOENT)
			break;
		taken = each(context, keys, values, count);
		if (taken)
			answer = taken;
		memcpy(place, following, sizeof(place));
		from = place;
	}
	free(keys);
	free(values);
	return answer == -ENOENT ? 0 : answer;
}

struct adding {
	uint32_t key_size, value_size;
	uint64_t *groups;
};

static long add(void *context, const unsigned char *keys, const unsigned char *values, uint32_t count)
{
	const struct adding *one = context;

	for (uint32_t i = 0; i < count; i++) {
		uint64_t key = spread(keys + (size_t)i * one->key_size, one->key_size, SEED);

		one->groups[group_of(key)] += number_of(key, values + (size_t)i * one->value_size, one->value_size);
	}
	return 0;
}

struct picking {
	uint32_t key_size, room, found;
	const unsigned char *wanted;
	unsigned char *keys;
};

static long pick(void *context, const unsigned char *keys, const unsigned char *values, uint32_t count)
{
	struct picking *one = context;

	(void)values;
	for (uint32_t i = 0; i < count; i++, keys += one->key_size) {
		if (!one->wanted[group_of(spread(keys, one->key_size, SEED))])
			continue;
		if (one->found == one->room)
			return -E2BIG;
		memcpy(one->keys + (size_t)one->found++ * one->key_size, keys, one->key_size);
	}
	return 0;
}

/* Gives the keys of some groups, `wanted[group]`; -E2BIG: there are more than there is room for. */
static long kmesh_keys_in(int fd, uint32_t key_size, uint32_t value_size, const unsigned char *wanted,
			  unsigned char *keys, uint32_t room)
{
	struct picking one = { .key_size = key_size, .room = room, .wanted = wanted, .keys = keys };
	long answer = read_all(fd, key_size, value_size, pick, &one);

	return answer ? answer : (long)one.found;
}

static long kmesh_create_groups(void)
{
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .max_entries = 1,
				.value_size = KMESH_GROUPS * sizeof(uint64_t) };

	memcpy(attr.map_name, "kmesh_sums", 11);
	return call(BPF_MAP_CREATE, &attr);
}

/* A function that a helper calls back must be told of by BTF: int main(void), static int each(void). */
static long load_types(void)
{
	struct {
		struct btf_header header;
		struct btf_type integer;
		uint32_t encoding;
		struct btf_type prototype, main, each;
		char names[16];
	} types = {
		.header = { .magic = BTF_MAGIC, .version = BTF_VERSION, .hdr_len = sizeof(struct btf_header) },
		.integer = { .name_off = 1, .info = BTF_KIND_INT << 24, .size = 4 },
		.encoding = BTF_INT_SIGNED << 24 | 32,
		.prototype = { .info = BTF_KIND_FUNC_PROTO << 24, .type = 1 },
		.main = { .name_off = 5, .info = BTF_KIND_FUNC << 24 | 1, .type = 2 },
		.each = { .name_off = 10, .info = BTF_KIND_FUNC << 24, .type = 2 },
		.names = "\0int\0main\0each",
	};
	union bpf_attr attr = { .btf = pointer(&types), .btf_size = sizeof(types) };

	types.header.type_len = types.header.str_off = offsetof(__typeof__(types), names) - sizeof(types.header);
	types.header.str_len = sizeof(types.names);
	return call(BPF_BTF_LOAD, &attr);
}

struct code {
	struct bpf_insn at[512];
	int count;
};

static void put(struct code *code, uint8_t operation, uint8_t to, uint8_t from, int16_t offset, int32_t number)
{
	code->at[code->count++] = (struct bpf_insn){ .code = operation, .dst_reg = to, .src_reg = from, .off = offset,
						     .imm = number };
}

static void put_wide(struct code *code, uint8_t to, uint8_t kind, uint64_t number)
{
	put(code, BPF_LD | BPF_DW | BPF_IMM, to, kind, 0, (int32_t)number);
	put(code, 0, 0, 0, 0, (int32_t)(number >> 32));
}

/* r0 = r0 * r1, and its upper half over the lower one; r5 is for passing. */
static void put_mixing(struct code *code)
{
	put(code, BPF_ALU64 | BPF_MUL | BPF_X, 0, 1, 0, 0);
	put(code, BPF_ALU64 | BPF_MOV | BPF_X, 5, 0, 0, 0);
	put(code, BPF_ALU64 | BPF_RSH | BPF_K, 5, 0, 0, 32);
	put(code, BPF_ALU64 | BPF_XOR | BPF_X, 0, 5, 0, 0);
}

static void put_spread(struct code *code, uint8_t bytes, uint32_t size)
{
	for (uint32_t i = 0; i < size; i += 4) {
		put(code, BPF_LDX | BPF_MEM | BPF_W, 5, bytes, i, 0);
		put(code, BPF_ALU64 | BPF_XOR | BPF_X, 0, 5, 0, 0);
		put_mixing(code);
	}
}

/* Gives a program that adds up a map into groups_fd's one entry; or -errno: this kernel has none such, or no rights. */
static long kmesh_load_summing(int map_fd, uint32_t key_size, uint32_t value_size, int groups_fd)
{
	struct code code = { .count = 0 };
	int types = load_types(), callback, called_back;
	union bpf_attr attr = { .prog_type = BPF_PROG_TYPE_SCHED_CLS, .insns = pointer(code.at),
				.license = pointer("GPL"), .prog_btf_fd = types, .func_info_rec_size = 8 };
	struct bpf_func_info functions[2] = { { 0, 3 } };
	long answer;

	if (types < 0 || key_size % 4 || value_size % 4 || key_size + value_size > KMESH_MAX_VALUE) {
		if (types >= 0)
			close(types);
		return types < 0 ? types : -EINVAL;
	}
	put_wide(&code, 1, BPF_PSEUDO_MAP_FD, map_fd);
	callback = code.count;
	put_wide(&code, 2, PSEUDO_FUNC, 0);
	put(&code, BPF_ALU64 | BPF_MOV | BPF_K, 3, 0, 0, 0);
	put(&code, BPF_ALU64 | BPF_MOV | BPF_K, 4, 0, 0, 0);
	put(&code, BPF_JMP | BPF_CALL, 0, 0, 0, FOR_EACH_MAP_ELEM);
	put(&code, BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0);
	put(&code, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	/* each(r1: map, r2: key, r3: value, r4: nothing); r4 becomes the place of the entry's group. */
	called_back = code.count;
	put_wide(&code, 0, 0, SEED);
	put_wide(&code, 1, 0, FACTOR);
	put_spread(&code, 2, key_size);
	put(&code, BPF_ALU64 | BPF_MOV | BPF_X, 5, 0, 0, 0);
	put(&code, BPF_ALU64 | BPF_AND | BPF_K, 5, 0, 0, KMESH_GROUPS - 1);
	put(&code, BPF_ALU64 | BPF_LSH | BPF_K, 5, 0, 0, 3);
	put_wide(&code, 4, BPF_PSEUDO_MAP_VALUE, (uint32_t)groups_fd);
	put(&code, BPF_ALU64 | BPF_ADD | BPF_X, 4, 5, 0, 0);
	put_spread(&code, 3, value_size);
	put_mixing(&code);
	put(&code, BPF_LDX | BPF_MEM | BPF_DW, 5, 4, 0, 0);
	put(&code, BPF_ALU64 | BPF_ADD | BPF_X, 5, 0, 0, 0);
	put(&code, BPF_STX | BPF_MEM | BPF_DW, 4, 5, 0, 0);
	put(&code, BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0);
	put(&code, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	code.at[callback].imm = called_back - callback - 1;
	functions[1] = (struct bpf_func_info){ called_back, 4 };
	attr.insn_cnt = code.count;
	attr.func_info = pointer(functions);
	attr.func_info_cnt = 2;
	memcpy(attr.prog_name, "kmesh_sum", 10);
	answer = call(BPF_PROG_LOAD, &attr);
	close(types);
	return answer;
}

/* Adds up a map, by its program (program >= 0) or by reading all of it; -EINVAL, -524: this kernel does not give it so. */
static long kmesh_sums(int fd, uint32_t key_size, uint32_t value_size, int program, int groups_fd, uint64_t *groups)
{
	struct adding one = { .key_size = key_size, .value_size = value_size, .groups = groups };
	unsigned char packet[64] = { 0 };
	union bpf_attr attr = { .test = { .prog_fd = program, .data_in = pointer(packet), .data_size_in = sizeof(packet) } };
	uint32_t key = 0;
	long answer;

	memset(groups, 0, KMESH_GROUPS * sizeof(*groups));
	if (program < 0)
		return read_all(fd, key_size, value_size, add, &one);
	answer = kmesh_map_update(groups_fd, &key, groups);
	if (!answer)
		answer = call(BPF_PROG_TEST_RUN, &attr);
	return answer ? answer : kmesh_map_lookup(groups_fd, &key, groups);
}
