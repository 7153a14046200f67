"""What the three programs should make of a packet, in Python: written from DESIGN's words, not from the C."""

from dataclasses import dataclass

from kmesh_bpf import contract
from kmesh_bpf.core.state import PodFlags, Program
from tests.bpf.node import SHOT, UNSPEC

ENCRYPT, DECRYPTED, LOW = 0xE0, 0xD0, 0xFF


@dataclass(frozen=True)
class Case:
    """A packet and what the maps say about it. ``source`` and ``destination``: their flags, None: not managed."""

    program: Program
    strict: bool
    mark: int
    esp: bool
    source: PodFlags | None
    destination: PodFlags | None
    peer_mark: int | None
    to_service: bool


def expected(case):
    """Give (verdict, mark, counter)."""
    return {
        Program.MARK_ENCRYPT: mark_encrypt,
        Program.MARK_DECRYPT: mark_decrypt,
        Program.LEAK_GUARD: leak_guard,
    }[case.program](case)


def has(flags, flag):
    return flags is not None and flag in flags


def mark_encrypt(case):
    to_ready = has(case.destination, PodFlags.READY)
    to_service = case.to_service and case.destination is None
    if has(case.source, PodFlags.LOCAL) and (to_ready or to_service):
        return UNSPEC, case.mark & ~LOW | ENCRYPT, "marked"
    return UNSPEC, case.mark, None


def mark_decrypt(case):
    """Without a security path: BPF_PROG_TEST_RUN gives no packet one, so nothing counts as decrypted."""
    if case.esp and case.peer_mark is not None:
        kept = case.mark & ~(contract.NODE_MARK_MASK | LOW)
        return UNSPEC, kept | case.peer_mark | DECRYPTED, "esp_known_peer"
    managed = has(case.source, PodFlags.REMOTE) and has(case.destination, PodFlags.LOCAL)
    if managed and case.strict:
        return SHOT, case.mark, "dropped_clear_text"
    stale = case.mark & LOW in (ENCRYPT, DECRYPTED)
    reasons = [(managed, "allowed_clear_text"), (case.esp, "esp_unknown_peer"), (stale, "stale_mark_cleared")]
    counter = next((name for holds, name in reasons if holds), None)
    return UNSPEC, case.mark & ~LOW if stale else case.mark, counter


def leak_guard(case):
    ours = case.mark & LOW == ENCRYPT or has(case.source, PodFlags.LOCAL)
    if not (has(case.destination, PodFlags.REMOTE) and ours):
        return UNSPEC, case.mark, None
    if not case.strict and not has(case.destination, PodFlags.READY):
        return UNSPEC, case.mark, "allowed_clear_text"
    return SHOT, case.mark, "dropped_by_guard"
