"""Operations as the command lines a person could run: the log, ``--dry-run`` and errors speak them."""

from __future__ import annotations

import shlex

from kmesh_bpf import contract
from kmesh_bpf.core import masquerade
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.marks import UNMARKED
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.state import ICV_BITS, Attachment, Mark, PeerEntry, Policy, Sa
from kmesh_bpf.core.view import Address, Network

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
            return _peer(address, entry, maps)
        case ops.DeletePeer(address):
            return f"bpftool map delete pinned {maps}/kmesh_peers{address.version} key {_bytes(address)}"
        case ops.SetPod(address, flags):
            value = _hex(int(flags).to_bytes(4, "little"))
            return (
                f"bpftool map update pinned {maps}/kmesh_pods{address.version} key {_bytes(address)} value hex {value}"
            )
        case ops.DeletePod(address):
            return f"bpftool map delete pinned {maps}/kmesh_pods{address.version} key {_bytes(address)}"
        case ops.SetSource(address, ifindex):
            value = _hex(ifindex.to_bytes(4, "little"))
            return (
                f"bpftool map update pinned {maps}/kmesh_srcs{address.version} key {_bytes(address)} value hex {value}"
            )
        case ops.DeleteSource(address):
            return f"bpftool map delete pinned {maps}/kmesh_srcs{address.version} key {_bytes(address)}"
        case ops.AddPodDevice(ifindex):
            return f"bpftool map update pinned {maps}/kmesh_devices key {_number(ifindex, 4)} value {_number(0, 4)}"
        case ops.DeletePodDevice(ifindex):
            return f"bpftool map delete pinned {maps}/kmesh_devices key {_number(ifindex, 4)}"
        case ops.SetFormer(pair, spi):
            return f"bpftool map update pinned {maps}/kmesh_formers key {_number(pair, 8)} value {_number(spi, 4)}"
        case ops.DeleteFormer(pair):
            return f"bpftool map delete pinned {maps}/kmesh_formers key {_number(pair, 8)}"
        case ops.LowerHashThresholds():
            return "ip xfrm policy set hthresh4 0 32 hthresh6 0 128"
        case ops.RestoreHashThresholds():
            return "ip xfrm policy set hthresh4 32 32 hthresh6 128 128"
        case ops.AddService(cidr):
            return (
                f"bpftool map update pinned {maps}/kmesh_svcs{cidr.version} key {_trie_key(cidr)} value hex 00 00 00 00"
            )
        case ops.DeleteService(cidr):
            return f"bpftool map delete pinned {maps}/kmesh_svcs{cidr.version} key {_trie_key(cidr)}"
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


def _peer(address: Address, entry: PeerEntry, maps: str) -> str:
    fields = (entry.node_id, entry.node_mark, entry.spi, entry.retired)
    value = " ".join(_hex(number.to_bytes(4, "little")) for number in fields)
    value += "".join(" " + _hex(number.to_bytes(8, "little")) for number in (entry.incarnations, entry.pair))
    return f"bpftool map update pinned {maps}/kmesh_peers{address.version} key {_bytes(address)} value hex {value}"


def _told(sa: Sa, entry: PeerEntry | None, maps: str) -> str:
    return f"{_peer(sa.dst, entry, maps)} && " if entry is not None else ""


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


def _hex(data: bytes) -> str:
    return data.hex(" ")


def _number(number: int, size: int) -> str:
    return f"hex {_hex(number.to_bytes(size, 'little'))}"


def _bytes(address: Address) -> str:
    return f"hex {_hex(address.packed)}"


def _trie_key(cidr: Network) -> str:
    return f"hex {_hex(cidr.prefixlen.to_bytes(4, 'little') + cidr.network_address.packed)}"
