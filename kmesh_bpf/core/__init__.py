# SPDX-License-Identifier: Apache-2.0
"""The core: what should be, and what to do about it.

No I/O here, no clock, no randomness, no environment: those come in as arguments. Imports: the standard library's
pure parts, ``kmesh_bpf.errors`` and the constants of ``kmesh_bpf.contract``.
"""
