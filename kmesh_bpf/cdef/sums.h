/* SPDX-License-Identifier: Apache-2.0 */
/* What kmesh_bpf/_map_sums.c offers; see there. */
#define KMESH_GROUPS ...

long kmesh_create_groups(void);
long kmesh_load_summing(int map_fd, uint32_t key_size, uint32_t value_size, int groups_fd);
long kmesh_sums(int fd, uint32_t key_size, uint32_t value_size, int program, int groups_fd, uint64_t *groups);
long kmesh_follow(int fd, const void *keys, uint32_t key_size, uint32_t value_size, uint32_t count, int sign, uint64_t *groups);
void kmesh_groups_of(const void *keys, uint32_t key_size, uint32_t count, uint16_t *groups);
long kmesh_keys_in(int fd, uint32_t key_size, uint32_t value_size, const unsigned char *wanted, unsigned char *keys, uint32_t room);
