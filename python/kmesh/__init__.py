"""The programs around kmesh_bpf: the launcher, the cluster sources, kmeshctl."""
