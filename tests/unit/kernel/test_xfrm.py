# SPDX-License-Identifier: Apache-2.0
"""What becomes of the kernel's answers to SAs and policies: success, or an error of ours that names the object."""

import errno
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import make_plan
from kmesh_bpf.core.state import Direction, KernelState, Observation
from kmesh_bpf.errors import ConflictError, EncodeError, KernelError, UnsupportedError
from kmesh_bpf.kernel.netlink import Ack
from kmesh_bpf.kernel.xfrm import NO_ESP, Xfrm
from tests.unit.core import mesh

PLANNED = make_plan(mesh.view(nodes=2), Observation(KernelState()), Options(), 0.0).state
INBOUND = next(sa for sa in PLANNED.sas.values() if sa.mark and sa.src.version == 4)
OUTBOUND = next(sa for sa in PLANNED.sas.values() if not sa.mark and sa.src.version == 6)
POLICY = next(one for one in PLANNED.policies.values() if one.direction is Direction.OUT and one.src.version == 4)
ADD, DELETE, REPLACE = ops.AddSa(INBOUND), ops.DeleteSa(OUTBOUND), ops.ReplaceSa(OUTBOUND, OUTBOUND)
IN_TEXT = f"10.10.0.2 -> 10.10.0.1 spi 0x00000001 mark {INBOUND.mark}"
OUT_TEXT = "fd00:10::1 -> fd00:10::2 spi 0x00000001"
POLICY_TEXT = "out 0.0.0.0/0 -> 10.244.2.10/32 mark 0xe0/0xef"
DONE = Ack(0)


def answered(operations, *acks):
    """Give the failures of operations that a kernel answers so, an answer a message."""

    def execute(requests):
        assert len(requests) == len(acks)
        return acks

    return Xfrm(SimpleNamespace(execute=execute)).apply(operations)


@pytest.mark.parametrize(
    ("operation", "acks", "verb", "target"),
    [
        (ADD, (Ack(errno.EPERM),), "add SA", IN_TEXT),
        (DELETE, (Ack(errno.EPERM),), "delete SA", OUT_TEXT),
        (REPLACE, (Ack(errno.EPERM), DONE), "delete SA", OUT_TEXT),
        (REPLACE, (DONE, Ack(errno.EPERM)), "add SA", OUT_TEXT),
        (REPLACE, (Ack(errno.EPERM), Ack(errno.EEXIST)), "delete SA", OUT_TEXT),
        (ops.SetPolicy(POLICY), (Ack(errno.EPERM),), "add policy", POLICY_TEXT),
        (ops.SetPolicy(POLICY, replace=True), (Ack(errno.EPERM),), "update policy", POLICY_TEXT),
        (ops.DeletePolicy(POLICY), (Ack(errno.EPERM),), "delete policy", POLICY_TEXT),
    ],
)
def test_a_refusal_names_the_verb_the_object_and_the_errno(operation, acks, verb, target):
    (failure,) = answered([operation], *acks)
    assert failure.operation is operation
    assert type(failure.error) is KernelError
    assert (failure.error.operation, failure.error.target, failure.error.errno) == (verb, target, errno.EPERM)
    assert str(failure.error) == f"{verb} {target}: Operation not permitted (EPERM)"


def test_the_kernel_s_own_words_are_passed_on():
    (failure,) = answered([ops.SetPolicy(POLICY)], Ack(errno.EINVAL, "Invalid policy direction"))
    assert failure.error.detail == "Invalid policy direction"
    assert str(failure.error).endswith("(EINVAL): Invalid policy direction")


@pytest.mark.parametrize("operation", [ADD, ops.SetPolicy(POLICY)])
def test_what_stands_in_the_place_of_ours_is_a_conflict(operation):
    (failure,) = answered([operation], Ack(errno.EEXIST, "File exists"))
    assert type(failure.error) is ConflictError
    assert failure.error.errno == errno.EEXIST
    assert "something that is not ours" in str(failure.error)


@pytest.mark.parametrize("number", [errno.EPROTONOSUPPORT, errno.ENOSYS, errno.ENOENT])
@pytest.mark.parametrize(("operation", "before"), [(ADD, ()), (REPLACE, (DONE,))])
def test_a_kernel_without_esp_or_gcm_is_unsupported_with_the_way_out(number, operation, before):
    (failure,) = answered([operation], *before, Ack(number))
    assert isinstance(failure.error, UnsupportedError)
    assert failure.error.feature == f"ESP with rfc4106(gcm(aes)) (errno {number})"
    assert "load esp4, esp6 and gcm" in failure.error.remedy
    (failure,) = answered([operation], *before, Ack(number, "Requested mode not found"))
    assert failure.error.feature == "ESP with rfc4106(gcm(aes)) (Requested mode not found)"


@pytest.mark.parametrize("number", [*NO_ESP, errno.ESRCH])
def test_of_a_policy_the_same_numbers_say_nothing_about_esp(number):
    (failure,) = answered([ops.SetPolicy(POLICY)], Ack(number))
    assert type(failure.error) is KernelError


@pytest.mark.parametrize("number", [errno.ESRCH, errno.ENOENT])
def test_what_is_gone_already_is_as_good_as_deleted(number):
    gone = Ack(number)
    assert answered([DELETE, ops.DeletePolicy(POLICY), REPLACE], gone, gone, gone, DONE) == ()


def test_each_failure_is_that_of_its_own_operation_also_behind_one_that_cannot_be_sent():
    unsendable = ops.AddSa(replace(INBOUND, spi=0))
    failures = answered([ADD, unsendable, REPLACE, DELETE], DONE, DONE, Ack(errno.ENOMEM), Ack(errno.EBUSY))
    found = {failure.operation: getattr(failure.error, "errno", type(failure.error)) for failure in failures}
    assert found == {unsendable: EncodeError, REPLACE: errno.ENOMEM, DELETE: errno.EBUSY}


def test_no_key_shows_in_an_error():
    for number in (errno.EPERM, errno.EEXIST, errno.ENOSYS):
        (failure,) = answered([ADD], Ack(number))
        assert INBOUND.key.reveal().hex()[:8] not in str(failure.error)
