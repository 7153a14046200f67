# SPDX-License-Identifier: Apache-2.0
"""Which SAs and policies somebody else has touched, by the notifications of linux/xfrm.h; no I/O.

They say what an object was at some moment, in an order; nothing is taken from them but which one it is. It is asked for
anew: that is true however many of them come, and however late.
"""

from __future__ import annotations

from collections.abc import Iterable

from kmesh_bpf._abi import lib
from kmesh_bpf.core import marks
from kmesh_bpf.core.mirror import Keys
from kmesh_bpf.core.state import PolicyId, SaId
from kmesh_bpf.errors import DecodeError
from kmesh_bpf.kernel import xfrm_messages as wire
from kmesh_bpf.kernel.netlink import Notification

SAS, POLICIES = frozenset({"sas"}), frozenset({"policies"})
FLUSHED = {lib.XFRM_MSG_FLUSHSA: SAS, lib.XFRM_MSG_FLUSHPOLICY: POLICIES, lib.NLMSG_OVERRUN: SAS | POLICIES}
"""What is known no more of any object, by the message's type."""
OF_SAS = {
    lib.XFRM_MSG_NEWSA: "struct xfrm_usersa_info",
    lib.XFRM_MSG_UPDSA: "struct xfrm_usersa_info",
    lib.XFRM_MSG_DELSA: "struct xfrm_usersa_id",
    lib.XFRM_MSG_EXPIRE: "struct xfrm_user_expire",
}
OF_POLICIES = {
    lib.XFRM_MSG_NEWPOLICY: "struct xfrm_userpolicy_info",
    lib.XFRM_MSG_UPDPOLICY: "struct xfrm_userpolicy_info",
    lib.XFRM_MSG_DELPOLICY: "struct xfrm_userpolicy_id",
    lib.XFRM_MSG_POLEXPIRE: "struct xfrm_user_polexpire",
}
"""The structs at the head of notifications, by the message's type."""


def touched(notifications: Iterable[Notification], own: int) -> Keys:
    """Give what is to be asked for: objects that others have made, altered or removed and that may be ours.

    ``own``: the port id of the socket by which we make changes ourselves. What is anything but ours by its mark is left
    out. All objects of a kind are to be read anew where some were lost, or all removed, or one cannot be read.
    """
    found = Keys()
    for one in notifications:
        if one.port_id == own:
            continue
        found.whole |= FLUSHED.get(one.number, frozenset())
        found.rest |= one.number == lib.XFRM_MSG_GETDEFAULT  # what becomes of packets that no policy selects
        try:
            if one.number in OF_SAS:
                found.sas |= dict.fromkeys(_sa(one))
            elif one.number in OF_POLICIES and wire.is_rival(OF_POLICIES[one.number], one.body):
                found.whole, found.rest = found.whole | POLICIES, True  # which ones there are a dump tells
            elif one.number in OF_POLICIES:
                found.policies |= dict.fromkeys(_policy(one))
        except DecodeError:
            found.whole |= SAS if one.number in OF_SAS else POLICIES
    return found


def _sa(one: Notification) -> Iterable[SaId]:
    identity = wire.decode_sa_id(OF_SAS[one.number], one.body)
    if identity is not None and marks.may_be_of_sa(identity.mark):
        yield identity


def _policy(one: Notification) -> Iterable[PolicyId]:
    identity = wire.decode_policy_id(OF_POLICIES[one.number], one.body)
    if identity is not None and marks.is_of_policy(identity.direction, identity.mark):
        yield identity
