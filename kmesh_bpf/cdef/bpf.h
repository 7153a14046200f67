/* Parts of linux/bpf.h; `...` lets the compiler fill in sizes, offsets and numbers from the system's header. */
union bpf_attr { ...; };
long kmesh_bpf_call(int command, union bpf_attr *attr);
