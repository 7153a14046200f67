# SPDX-License-Identifier: Apache-2.0
"""Builds ``kmesh_bpf._abi``: the C structs and constants of the kernel and of our contract header, for Python.

cffi's API mode compiles a small extension against the *system's* headers, so sizes and offsets are the compiler's,
not ours. What is declared: ``bpf/include/ipsec_contract.h`` (whole) and ``kmesh_bpf/cdef/*.h`` (the parts of the
kernel's headers that we use). Run by setup.py; never imported at run time.
"""

from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
CDEF = ROOT / "kmesh_bpf" / "cdef"

# cdef has no #include: the kernel's integer names come first.
INTEGERS = """
typedef uint8_t __u8; typedef uint16_t __u16; typedef uint32_t __u32; typedef uint64_t __u64;
typedef int8_t __s8; typedef int16_t __s16; typedef int32_t __s32; typedef int64_t __s64;
typedef uint16_t __be16; typedef uint32_t __be32; typedef uint64_t __be64;
"""

SOURCE = """
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/lwtunnel.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/nexthop.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/tc_act/tc_ct.h>
#include <linux/tc_act/tc_mirred.h>
#include <linux/tc_act/tc_skbedit.h>
#include <linux/xfrm.h>
#include <sys/socket.h>
#include "_bpf_calls.c"
#include "ipsec_contract.h"
"""

CONTRACT = (ROOT / "bpf" / "include" / "ipsec_contract.h").read_text()


def constants() -> str:
    """Give the text of a module that stands in for the extension where kmeshctl alone is wanted: constants only."""
    contract = FFI()
    contract.cdef(INTEGERS + CONTRACT)
    found = contract.dlopen(None)
    values = {name: getattr(found, name) for name in sorted(dir(found))}
    return f'''"""The constants of bpf/include/ipsec_contract.h, written by kmesh_bpf/_build.py."""

from types import SimpleNamespace

lib = SimpleNamespace(**{values})
ffi = None
'''


ffi = FFI()
ffi.cdef(INTEGERS)
ffi.cdef(CONTRACT)
for declarations in sorted(CDEF.glob("*.h")):
    ffi.cdef(declarations.read_text())
ffi.set_source("kmesh_bpf._abi", SOURCE, include_dirs=[str(ROOT / "bpf" / "include"), str(ROOT / "kmesh_bpf")])

if __name__ == "__main__":
    ffi.compile(tmpdir=str(ROOT), verbose=True)
