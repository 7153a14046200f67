# SPDX-License-Identifier: Apache-2.0
"""The programs around kmesh_bpf: the launcher and what it tells of itself, the cluster sources, kmeshctl."""
