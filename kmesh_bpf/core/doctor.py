# SPDX-License-Identifier: Apache-2.0
"""What a node lacks, or has that is in the way, for encryption: facts -> findings, each with the way out. Pure.

What the daemon's plan finds wrong is found by the same functions here; what else is asked costs too much, or matters
too little, to be asked in each pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

from kmesh_bpf import contract
from kmesh_bpf.core import detours, devices, fib_rules, interference, rivals
from kmesh_bpf.core.fib_rules import FibRule
from kmesh_bpf.core.problems import Problem
from kmesh_bpf.core.state import Observation, managed_pods, own_addresses, remote_pods
from kmesh_bpf.core.view import Address

OUTER_HEADER = {4: 20, 6: 40}
"""Bytes of the IP header of a tunnel, by IP version."""
ESP_FIXED, ESP_TAIL, ESP_ALIGNMENT = 8 + 8 + 16, 2, 4
"""Bytes of ESP with rfc4106(gcm(aes)): header, IV and integrity check value; pad length and next header, with which
what is encrypted comes to a multiple of four (RFC 4303 section 2, RFC 4106)."""
TCX_SINCE = (6, 6)
"""Linux."""
ERRORS_WORTH_SAYING = frozenset(
    {"XfrmInNoStates", "XfrmInStateProtoError", "XfrmInStateSeqError", "XfrmInTmplMismatch"}
)
"""Counters that packets of ours raise when they are lost on the way in."""


class Severity(IntEnum):
    """How bad it is: ``NOTE``: it is good to know; ``WARNING``: it may cost packets; ``ERROR``: it does."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Option:
    """A kernel option, and what happens without it."""

    name: str
    severity: Severity
    why: str


OPTIONS = (
    Option("CONFIG_BPF_SYSCALL", Severity.ERROR, "there is no BPF, so nothing tells what is to be encrypted"),
    Option("CONFIG_NET_CLS_ACT", Severity.ERROR, "there is no place on devices for the programs"),
    Option("CONFIG_NET_CLS_BPF", Severity.ERROR, "there is no place on devices for the programs before Linux 6.6"),
    Option("CONFIG_NET_SCH_INGRESS", Severity.ERROR, "there is no clsact, the place for the programs before Linux 6.6"),
    Option("CONFIG_XFRM_USER", Severity.ERROR, "SAs and policies cannot be made"),
    Option("CONFIG_INET_ESP", Severity.ERROR, "there is no ESP over IPv4"),
    Option("CONFIG_INET6_ESP", Severity.ERROR, "there is no ESP over IPv6"),
    Option("CONFIG_CRYPTO_GCM", Severity.ERROR, "there is no AES-GCM"),
    Option("CONFIG_BPF_JIT", Severity.WARNING, "the programs are interpreted, several times as slow"),
    Option("CONFIG_XFRM_STATISTICS", Severity.NOTE, "nobody counts why IPsec drops packets (/proc/net/xfrm_stat)"),
    Option("CONFIG_NET_ACT_CT", Severity.NOTE, "tc rules that use conntrack (act_ct) of others do not work"),
)


@dataclass(frozen=True, slots=True)
class Device:
    """A device's size and speed. ``queues``: that receive, 0: not known; ``steered``: RPS spreads them over cores."""

    name: str
    mtu: int
    queues: int = 0
    steered: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that was tried and cannot be had: what, and the way out."""

    feature: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read on a node.

    ``release``: of the kernel (major, minor). ``lacking``: names of OPTIONS that its configuration says no to; None:
    there is no configuration to read. ``missing``: what was tried in a network namespace of its own and failed.
    ``observed``: what a daemon goes by. ``running``: a daemon's programs are on devices. ``devices``, ``cores``: of
    this machine; ``rp_filter``: names of devices on which the kernel's strict reverse path filter (1) is on.
    ``foreign_sas``: SAs of others; ``synchronised``: the clock; None: nobody says.
    """

    release: tuple[int, int]
    observed: Observation
    running: bool = False
    lacking: frozenset[str] | None = frozenset()
    missing: tuple[Missing, ...] = ()
    rules: tuple[FibRule, ...] = ()
    devices: tuple[Device, ...] = ()
    rp_filter: tuple[str, ...] = ()
    cores: int = 1
    foreign_sas: int = 0
    xfrm_errors: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    synchronised: bool | None = None
    jit: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know. ``check``: which of the checks found it; ``what``, ``why``: sentences; ``mend``: a command.

    ``mend`` may be words where no command mends it, or the sentence itself has the way out, and it is empty.
    """

    severity: Severity
    check: str
    what: str
    why: str
    mend: str = ""


def findings(facts: Facts, mark_mask: int) -> tuple[Finding, ...]:
    """Judge a node, the worst first; ``mark_mask``: the bits of marks that are ours."""
    found = (*_in_the_way(facts, mark_mask), *_masquerade(facts), *_others(facts), *_around(facts))
    return tuple(sorted(dict.fromkeys(found), key=lambda one: -one.severity))


def beside_the_plan(facts: Facts) -> tuple[Finding, ...]:
    """Give what a daemon that starts does not find out by its passes, and what may cost packets."""
    return tuple(one for one in _around(facts) if one.severity > Severity.NOTE)


def _around(facts: Facts) -> Iterator[Finding]:
    yield from _kernel(facts)
    yield from _routing(facts)
    yield from _devices(facts)
    yield from _clock(facts)


def room(mtu: int, version: int) -> int:
    """Give the largest packet that fits into a tunnel over a device, in bytes; ``version``: of IP outside."""
    return (mtu - OUTER_HEADER[version] - ESP_FIXED) // ESP_ALIGNMENT * ESP_ALIGNMENT - ESP_TAIL


def _kernel(facts: Facts) -> Iterator[Finding]:
    for one in facts.missing:
        yield Finding(
            Severity.ERROR, "kernel", f"{one.feature} is not available", "the daemon cannot do without", one.remedy
        )
    tcx = facts.release >= TCX_SINCE
    for option in OPTIONS:
        before_tcx = option.name in ("CONFIG_NET_CLS_BPF", "CONFIG_NET_SCH_INGRESS")
        if option.name in (facts.lacking or ()) and not (tcx and before_tcx):
            yield Finding(
                option.severity,
                "kernel",
                f"the kernel is built without {option.name}",
                option.why,
                "use another kernel",
            )
    if facts.lacking is None:
        yield Finding(
            Severity.NOTE, "kernel", "the kernel's configuration is not to be found", "its options were not checked"
        )
    if not tcx:
        what = f"Linux {facts.release[0]}.{facts.release[1]} has no TCX: programs are filters of clsact"
        why = "a program that somebody else puts on TCX, or at our priority, comes first"
        yield Finding(Severity.NOTE, "kernel", what, why, "Linux 6.6 or newer")
    if not facts.jit:
        why = "the programs are interpreted, several times as slow"
        yield Finding(
            Severity.WARNING, "kernel", "BPF's JIT compiler is off", why, "sysctl -w net.core.bpf_jit_enable=1"
        )


def _problems(facts: Facts, mark_mask: int) -> Iterator[Problem]:
    """Give what is in the way, as a daemon's plan has it."""
    observed, addresses = facts.observed, _addresses(facts)
    managed = remote_pods(observed.state) or _anybody(observed)
    yield from interference.judge(observed.suspects, observed.links, addresses, mark_mask)
    # Node ids' bits count as they are by default: which ones a daemon was told to use, nobody tells here.
    pods = frozenset(observed.state.sources.values())
    bits = contract.NODE_MARK_MASK | mark_mask
    yield from detours.judge(observed.detours, observed.links, pods, remote_pods(observed.state), bits)
    yield from rivals.judge(observed.rivals, observed.refusing, managed, mark_mask)
    decided = devices.decide(observed.links, addresses, (), managed_pods(observed.state), observed.state.sources)
    yield from decided.problems


def _addresses(facts: Facts) -> Collection[Address]:
    """Give the node's addresses: those that a daemon knew, else those of devices that lead out."""
    known = own_addresses(facts.observed.state)
    return known or {address for link in facts.observed.links if link.leads_out for address in link.addresses}


def _anybody(observed: Observation) -> set[Address]:
    """Give an address that each policy of others selects: where no daemon has told, any pod may be managed."""
    networks = (network for rival in observed.rivals for network in (rival.src, rival.dst))
    return {network.network_address for network in networks}


def _in_the_way(facts: Facts, mark_mask: int) -> Iterator[Finding]:
    for problem in _problems(facts, mark_mask):
        yield Finding(Severity.ERROR, "in the way", problem.sentence, problem.kind.value)


def _routing(facts: Facts) -> Iterator[Finding]:
    for rule in fib_rules.by_address(facts.rules, managed_pods(facts.observed.state)):
        why = "packets from or to managed pods are dropped by their address"
        yield Finding(Severity.ERROR, "routing", str(rule), why, fib_rules.removal(rule))


def _devices(facts: Facts) -> Iterator[Finding]:
    observed = facts.observed
    out = {link.name: link for link in observed.links if link.leads_out and link.kind not in interference.OVERLAYS}
    known = {one.name: one for one in facts.devices}
    bound = frozenset(observed.state.sources.values())
    pods = [known[link.name] for link in observed.links if link.ifindex in bound and link.name in known]
    versions = {address.version for link in out.values() for address in link.addresses}
    for name in sorted(out.keys() & known.keys()):
        device = known[name]
        most = min((room(device.mtu, version) for version in versions), default=device.mtu)
        large = [one.name for one in pods if one.mtu > most]
        if large:
            what = f"devices of {len(large)} pods ({', '.join(large[:3])}) take packets of more than {most} bytes"
            why = f"with ESP around them they do not fit into {name} ({device.mtu} bytes): senders learn that by ICMP"
            yield Finding(Severity.NOTE, "MTU", what, why, f"give pods an MTU of {most} in the CNI's configuration")
        if 0 < device.queues < facts.cores and not device.steered:
            what = f"{name} receives by {device.queues} queues, on a machine of {facts.cores} cores, without RPS"
            why = "what comes by one queue is decrypted on one core"
            cores = f"{(1 << facts.cores) - 1:x}"
            mend = f"for queue in /sys/class/net/{name}/queues/rx-*; do echo {cores} >$queue/rps_cpus; done"
            yield Finding(Severity.NOTE, "queues", what, why, mend)
    strict = sorted(out.keys() & set(facts.rp_filter))
    if len(out) > 1 and strict:
        what = f"the strict reverse path filter is on for {', '.join(strict)}, and {len(out)} devices lead out"
        why = "ESP that comes by another device than the way back leads by is dropped (not what is decrypted)"
        mend = "; ".join(f"sysctl -w net.ipv4.conf.{name}.rp_filter=2" for name in strict)
        yield Finding(Severity.WARNING, "rp_filter", what, why, mend)


def _masquerade(facts: Facts) -> Iterator[Finding]:
    if facts.running and not facts.observed.state.nat_exemption:
        what = "masquerade rules are not kept from packets on their way to encryption (nft tables kmesh_ipsec)"
        why = "what they give the node's address to is selected by no policy, and dropped by the guard"
        yield Finding(Severity.ERROR, "masquerade", what, why, "start the daemon, which puts them back")


def _others(facts: Facts) -> Iterator[Finding]:
    if facts.foreign_sas:
        what = f"{facts.foreign_sas} SAs of other software are in XFRM"
        why = "its errors count in the same counters, and a flush by it takes ours too"
        yield Finding(Severity.NOTE, "XFRM", what, why, "ip xfrm state")
    risen = {name: number for name, number in facts.xfrm_errors.items() if number and name in ERRORS_WORTH_SAYING}
    if risen:
        what = (
            f"since boot XFRM has dropped {', '.join(f'{number} ({name})' for name, number in sorted(risen.items()))}"
        )
        why = "packets of IPsec were lost here: docs/troubleshooting.md, XFRM errors, says why"
        yield Finding(Severity.NOTE, "XFRM", what, why, "cat /proc/net/xfrm_stat")


def _clock(facts: Facts) -> Iterator[Finding]:
    if facts.synchronised is False:
        why = "reports look older, or newer, than they are, and certificates as if they had expired"
        yield Finding(Severity.WARNING, "clock", "the clock is not synchronised", why, "timedatectl set-ntp true")
