# SPDX-License-Identifier: Apache-2.0
"""Policy hash thresholds: only ever lowered, remembered before that, and put back as they were found."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf.errors import DecodeError, KernelError, UnsupportedError
from kmesh_bpf.kernel import thresholds
from kmesh_bpf.kernel.netlink import HEADER, Ack
from kmesh_bpf.kernel.thresholds import HashThresholds, lowered, to_remember

DEFAULT, OURS = (32, 32, 128, 128), (0, 32, 0, 128)
FOUND = st.tuples(st.integers(0, 32), st.integers(0, 32), st.integers(0, 128), st.integers(0, 128))


class Kernel:
    """Thresholds behind a socket; ``refusal`` is the errno of whatever is asked."""

    def __init__(self, found):
        self.found, self.refusal, self.log = found, 0, []

    def get(self, request):
        assert request == thresholds.encode_get()
        if self.refusal:
            raise KernelError("get", "netlink object", self.refusal)
        return thresholds.encode_set(self.found)[HEADER:]

    def execute(self, requests):
        (request,) = requests
        self.log.append("set")
        if not self.refusal:
            self.found = thresholds.decode(request[HEADER:])
        return [Ack(self.refusal)]


class Memory:
    def __init__(self, log):
        self.kept, self.log = None, log

    def thresholds(self):
        return self.kept

    def set_thresholds(self, found):
        self.log.append("keep")
        self.kept = found


@given(FOUND)
def test_they_read_back_as_they_were_written(found):
    assert thresholds.decode(thresholds.encode_set(found)[HEADER:]) == found


def test_a_kernel_without_them_has_none_and_half_an_answer_is_refused():
    assert thresholds.decode(thresholds.FLAGS) is None
    with pytest.raises(DecodeError):
        thresholds.decode(b"\0\0")


@given(FOUND)
def test_nobody_s_are_raised_and_ours_are_found_by_hash(found):
    assert all(new <= old for new, old in zip(lowered(found), found, strict=True))
    assert all(new <= want for new, want in zip(lowered(found), OURS, strict=True))
    assert lowered(lowered(found)) == lowered(found)


@given(FOUND)
def test_what_was_found_is_kept_before_it_changes_and_comes_back(found):
    kernel = Kernel(found)
    memory, one = Memory(kernel.log), HashThresholds(kernel)
    one.lower(memory)
    assert (kernel.found, kernel.log) == (lowered(found), ["keep", "set"])
    one.lower(memory)  # after a crash in between, say
    assert memory.kept == found
    one.restore(memory)
    assert (kernel.found, memory.kept) == (found, None)
    one.restore(memory)
    assert kernel.found == found


def test_what_somebody_sets_while_ours_are_in_force_is_kept_instead_of_what_was_found_first():
    assert to_remember((24, 24, 0, 128), DEFAULT) == (24, 24, 128, 128)
    assert to_remember((0, 32, 64, 64), DEFAULT) == (32, 32, 64, 64)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_a_kernel_that_knows_nothing_of_them_has_none_and_cannot_lower_any(number):
    kernel = Kernel(DEFAULT)
    kernel.refusal = number
    assert HashThresholds(kernel).found() is None
    with pytest.raises(UnsupportedError, match=r"Linux 3\.18"):
        HashThresholds(kernel).lower(Memory([]))


def test_any_other_refusal_is_an_error():
    kernel = Kernel(DEFAULT)
    kernel.refusal = errno.EPERM
    with pytest.raises(KernelError, match="EPERM"):
        HashThresholds(kernel).found()
    memory = Memory([])
    memory.kept = DEFAULT
    with pytest.raises(KernelError, match="policy hash thresholds"):
        HashThresholds(kernel).restore(memory)
    assert memory.kept == DEFAULT, "to be put back still"
