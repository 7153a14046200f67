# SPDX-License-Identifier: Apache-2.0
"""Operations as the command lines a person could run: the log, ``--dry-run`` and errors speak them."""

from __future__ import annotations

import shlex

from kmesh_bpf import contract
from kmesh_bpf.core import entries, masquerade
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.entries import Entry
from kmesh_bpf.core.marks import UNMARKED
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.state import ICV_BITS, Attachment, Mark, PeerEntry, Policy, Sa

KEY_TEXT = "0x$KEY"


def render(operation: Operation, programs: str, maps: str, mark_mask: int = contract.MARK_MASK) -> str:
    """Give the command line of an operation, for a shell that has the key of each SA in ``KEY``: keys are not shown.

    ``maps`` and ``programs`` are the folders in which maps and programs are pinned. Programs are attached by TC
    filters, the way that ``tc`` of every age knows; the product takes TCX links where the kernel has them.
    """
    match operation:
        case ops.AddSa(sa, told):
            return f"{_told(sa, told, maps)}ip xfrm state add {_sa(sa)}"
        case ops.ReplaceSa(old, new, told):
            return f"{_told(new, told, maps)}ip xfrm state delete {_sa_id(old)} && ip xfrm state add {_sa(new)}"
        case ops.DeleteSa(sa):
            return f"ip xfrm state delete {_sa_id(sa)}"
        case ops.SetPolicy(policy, replace):
            return f"ip xfrm policy {'update' if replace else 'add'} {_policy(policy)}"
        case ops.DeletePolicy(policy):
            return f"ip xfrm policy delete {_policy_id(policy)}"
        case ops.SetPeer(address, entry):
            return _update(maps, entries.peer(address, entry))
        case ops.DeletePeer(address):
            return _delete(maps, entries.peer(address))
        case ops.SetPod(address, flags):
            return _update(maps, entries.pod(address, flags))
        case ops.DeletePod(address):
            return _delete(maps, entries.pod(address))
        case ops.SetSource(address, ifindex):
            return _update(maps, entries.source(address, ifindex))
        case ops.DeleteSource(address):
            return _delete(maps, entries.source(address))
        case ops.AddPodDevice(ifindex):
            return _update(maps, entries.pod_device(ifindex))
        case ops.DeletePodDevice(ifindex):
            return _delete(maps, entries.pod_device(ifindex))
        case ops.SetFormer(pair, spi):
            return _update(maps, entries.former(pair, spi))
        case ops.DeleteFormer(pair):
            return _delete(maps, entries.former(pair))
        case ops.LowerHashThresholds():
            return "ip xfrm policy set hthresh4 0 32 hthresh6 0 128"
        case ops.RestoreHashThresholds():
            return "ip xfrm policy set hthresh4 32 32 hthresh6 128 128"
        case ops.AddService(cidr):
            return _update(maps, entries.service(cidr))
        case ops.DeleteService(cidr):
            return _delete(maps, entries.service(cidr))
        case ops.Attach(attachment):
            qdisc = f"tc qdisc add dev {attachment.device} clsact 2>/dev/null || :"
            pinned = f"bpf da pinned {programs}/{attachment.program.value}"
            return f"{qdisc}; tc filter replace {_filter(attachment)} {pinned}"
        case ops.Detach(attachment):
            return f"tc filter delete {_filter(attachment)} bpf"
        case ops.InstallNatExemption():
            return f"nft -j -f - <<< {shlex.quote(masquerade.installation(mark_mask))}"
        case ops.RemoveNatExemption():
            return f"nft -j -f - <<< {shlex.quote(masquerade.removal())}"


def _update(maps: str, entry: Entry) -> str:
    key, value = entry.key.hex(" "), entry.value.hex(" ")
    return f"bpftool map update pinned {maps}/{entry.map} key hex {key} value hex {value}"


def _delete(maps: str, entry: Entry) -> str:
    return f"bpftool map delete pinned {maps}/{entry.map} key hex {entry.key.hex(' ')}"


def _told(sa: Sa, entry: PeerEntry | None, maps: str) -> str:
    return f"{_update(maps, entries.peer(sa.dst, entry))} && " if entry is not None else ""


def _mark(mark: Mark) -> str:
    return f"mark {mark.value:#x} mask {mark.mask:#x}"


def _sa_id(sa: Sa) -> str:
    text = f"src {sa.src} dst {sa.dst} proto esp spi {sa.spi:#010x}"
    return f"{text} {_mark(sa.mark)}" if sa.mark else text


def _sa(sa: Sa) -> str:
    words = [_sa_id(sa), f"reqid {contract.REQID} mode tunnel"]
    if sa.replay_window:
        words.append(f"replay-window {sa.replay_window}")
    flags = [name for name, on in (("esn", sa.replay_window), ("af-unspec", sa.any_family)) if on]
    if flags:
        words.append(f"flag {' flag '.join(flags)}")
    if sa.output_mark:
        words.append(f"output-mark {sa.output_mark.value:#x} mask {sa.output_mark.mask:#x}")
    words.append(f"aead 'rfc4106(gcm(aes))' {KEY_TEXT} {ICV_BITS}")
    return " ".join(words)


def _policy_id(policy: Policy) -> str:
    text = f"src {policy.src} dst {policy.dst} dir {policy.direction.value}"
    return text if policy.mark == UNMARKED else f"{text} {_mark(policy.mark)}"


def _policy(policy: Policy) -> str:
    spi = f" spi {policy.spi:#010x}" if policy.spi else ""
    template = f"src {policy.tunnel_src} dst {policy.tunnel_dst} proto esp{spi} reqid {contract.REQID} mode tunnel"
    action = " action block" if policy.block else ""
    return f"{_policy_id(policy)}{action} priority {policy.priority} tmpl {template}"


def _filter(attachment: Attachment) -> str:
    direction = "egress" if attachment.program.egress else "ingress"
    return f"dev {attachment.device} {direction} pref {contract.TC_PRIORITY} handle {contract.TC_HANDLE:#x}"
