# SPDX-License-Identifier: Apache-2.0
"""What the programs should make of a packet, in Python: written from the design's words, not from the C."""

from dataclasses import dataclass

from kmesh_bpf import contract
from kmesh_bpf.core.state import PodFlags, Program

UNSPEC, SHOT = 0xFFFFFFFF, 2
MOST_TAGS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A packet and what the maps say about it.

    ``mark_mask``: bits of the low byte that are ours, ``node_mark_mask``: those of node ids. ``source``,
    ``destination``: their flags, None: in no map.
    ``quoted``: the flags of the two addresses in the packet that an ICMP error quotes, None: it is no such error.
    ``bound``: where the source's device is: "here", "elsewhere", None. ``pod_device``: the device carries bound sources
    only. ``local_scope``: the source is unspecified or link-local. ``decrypted_here``: its security path holds an SA of
    ours, which has decrypted it.
    """

    program: Program
    strict: bool = True
    mark_mask: int = 0xFF
    node_mark_mask: int = contract.NODE_MARK_MASK
    mark: int = 0
    esp: bool = False
    quoted: tuple[PodFlags | None, PodFlags | None] | None = None
    source: PodFlags | None = None
    destination: PodFlags | None = None
    peer_mark: int | None = None
    to_service: bool = False
    bound: str | None = None
    pod_device: bool = False
    local_scope: bool = False
    on_lo: bool = False
    tags: int = 0
    decrypted_here: bool = False

    @property
    def encrypt(self):
        return 0xE0 & self.mark_mask

    @property
    def decrypted(self):
        return 0xD0 & self.mark_mask

    @property
    def again(self):
        return 0xF0 & self.mark_mask

    @property
    def clear(self):
        """None: no bit is left for it."""
        return None if 0x30 & self.mark_mask == self.again else 0x30 & self.mark_mask

    @property
    def answer(self):
        return 0xC0 & self.mark_mask

    @property
    def own(self):
        """The bits of the mark that are ours."""
        return self.mark & self.mark_mask

    @property
    def too_deep(self):
        return self.tags > MOST_TAGS


def expected(case):
    """Give (verdict, mark, counter)."""
    return PROGRAMS[case.program](case)


def has(flags, flag):
    return flags is not None and flags.value & flag.value == flag.value


def remote_of(pair):
    """Give the flags of the other node's one of a managed pair, whichever way round; None: it is no managed pair."""
    for one, other in (pair, pair[::-1]) if pair else ():
        if has(one, PodFlags.LOCAL) and has(other, PodFlags.REMOTE):
            return other
    return None


def mark_encrypt(case):
    if case.too_deep:
        return UNSPEC, case.mark, "parse_failure"
    local = has(case.source, PodFlags.LOCAL)
    spoofed = (
        has(case.source, PodFlags.REMOTE)
        or (local and case.bound == "elsewhere")
        or (case.pod_device and case.bound != "here" and not case.local_scope)
    )
    if spoofed:
        return SHOT, case.mark, "dropped_spoofed"
    to_managed = has(case.destination, PodFlags.REMOTE) or has(case.destination, PodFlags.CANDIDATE)
    to_service = case.to_service and case.destination is None
    if local and (to_managed or to_service):
        return UNSPEC, case.mark & ~case.mark_mask | case.encrypt, "marked"
    return UNSPEC, case.mark, None


def mark_decrypt(case):
    """BPF_PROG_TEST_RUN gives no packet a security path: what counts as decrypted, other tests hold against the real one."""
    if case.decrypted_here and case.own in (case.decrypted, case.again):
        if case.own == case.again:
            return UNSPEC, case.mark, None
        here = has(case.destination, PodFlags.LOCAL)
        return UNSPEC, case.mark if here else case.mark & ~case.mark_mask | case.again, "decrypted"
    if case.too_deep:
        if case.strict:
            return SHOT, case.mark, "parse_failure"
        return UNSPEC, wiped(case, None), "parse_failure"
    if case.esp and case.peer_mark is not None:
        kept = case.mark & ~(case.node_mark_mask | case.mark_mask)
        mark = kept | case.peer_mark | case.decrypted
        return UNSPEC, mark, None if mark == case.mark else "esp_known_peer"
    towards_us = has(case.destination, PodFlags.LOCAL)
    managed = towards_us and (has(case.source, PodFlags.REMOTE) or remote_of(case.quoted) is not None)
    to_node = has(case.destination, PodFlags.OWN)
    encrypts = all(has(case.source, flag) for flag in (PodFlags.REMOTE, PodFlags.READY, PodFlags.PEER))
    managed = managed or (to_node and encrypts)
    if managed and case.strict:
        return SHOT, case.mark, "dropped_clear_text"
    undecided = has(case.source, PodFlags.REMOTE) and not managed
    mark = wiped(case, case.source, undecided=undecided)
    reasons = [
        (managed, "allowed_clear_text"),
        (case.esp, "esp_unknown_peer"),
        (mark != case.mark, "stale_mark_cleared"),
    ]
    if undecided and case.clear is not None:
        mark = mark & ~case.mark_mask | case.clear
    return UNSPEC, mark, next((name for holds, name in reasons if holds), None)


def wiped(case, source, *, undecided=False):
    """Give the mark without what is stale of it. ``undecided``: that it came in clear is still true."""
    stale = case.own in (case.encrypt, case.decrypted, case.again) or (case.own == case.clear and not undecided)
    kept = case.on_lo or has(source, PodFlags.LOCAL)
    return case.mark & ~case.mark_mask if stale and not kept else case.mark


def pod_guard(case):
    """What comes to a managed pod, and where it came from."""
    if case.too_deep:
        return SHOT if case.strict else UNSPEC, case.mark, "parse_failure"
    noted = case.own == case.clear
    if not has(case.destination, PodFlags.LOCAL) or case.decrypted_here:
        return UNSPEC, case.mark, None
    if case.strict and (noted or has(case.source, PodFlags.REMOTE)):
        return SHOT, case.mark, "dropped_clear_text"
    return UNSPEC, case.mark, "allowed_clear_text" if noted and not case.strict else None


def guard(case):
    """The two guards differ in what was decrypted, and in errors to pods of this node."""
    is_answer = case.answer and case.own == case.answer and case.destination is None
    if case.program is Program.LEAK_GUARD and case.decrypted_here and not is_answer:
        return SHOT, case.mark, "dropped_decrypted"
    if case.too_deep:
        return SHOT if case.strict else UNSPEC, case.mark, "parse_failure"
    targets = []
    ours = has(case.source, PodFlags.LOCAL) or case.own in (case.encrypt, case.again)
    if has(case.destination, PodFlags.REMOTE) and ours:
        targets.append(case.destination)
    node = has(case.destination, PodFlags.PEER) and has(case.destination, PodFlags.READY)
    nodes_own_esp = case.esp and not has(case.source, PodFlags.LOCAL)
    if node and case.own == case.encrypt and not nodes_own_esp:
        targets.append(case.destination)
    stays = case.program is Program.INNER_GUARD and has(case.destination, PodFlags.LOCAL)
    if remote_of(case.quoted) is not None and not stays:
        targets.append(remote_of(case.quoted))
    leaves = case.program is Program.LEAK_GUARD and case.own in (case.encrypt, case.again)
    mark = case.mark & ~case.mark_mask if leaves else case.mark
    if not targets:
        return UNSPEC, mark, None
    if case.strict or any(has(target, PodFlags.READY) for target in targets):
        return SHOT, case.mark, "dropped_by_guard"
    return UNSPEC, mark, "allowed_clear_text"


PROGRAMS = {
    Program.MARK_ENCRYPT: mark_encrypt,
    Program.MARK_DECRYPT: mark_decrypt,
    Program.LEAK_GUARD: guard,
    Program.INNER_GUARD: guard,
    Program.POD_GUARD: pod_guard,
}
