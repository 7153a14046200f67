# SPDX-License-Identifier: Apache-2.0
"""Which XFRM policies of others come before ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kmesh_bpf import contract
from kmesh_bpf._abi import lib


def comes_before(info: Any, found: Mapping[int, bytes]) -> bool:
    """Tell whether a policy does: its struct xfrm_userpolicy_info, and its attributes by number.

    Packets of xfrm interfaces are never ours. A policy of type sub is asked besides ours, whatever its priority
    (xfrm_policy_lookup, xfrm_expand_policies): it takes nothing away unless it has something done.
    """
    if any(found.get(lib.XFRMA_IF_ID, b"")):
        return False
    if found.get(lib.XFRMA_POLICY_TYPE, b"\0")[0] == lib.XFRM_POLICY_TYPE_SUB:
        return bool(info.action == lib.XFRM_POLICY_BLOCK) or lib.XFRMA_TMPL in found
    return bool(info.priority <= contract.POLICY_PRIORITY)
