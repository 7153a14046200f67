# SPDX-License-Identifier: Apache-2.0
"""The C programs and their contract header, shipped with the library as ``kmesh_bpf.csrc``."""
