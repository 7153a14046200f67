# SPDX-License-Identifier: Apache-2.0
"""The kernel in memory: what it tells of changes, as the real one does, and how it finds SAs."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from kmesh_bpf import ConfigError, FakeKernel, Key
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.state import Attachment, Direction, Link, Mark, PeerEntry, PodFlags, Policy, Program, Sa
from kmesh_bpf.errors import ConflictError
from kmesh_bpf.kernel.interface import Kernel
from tests.unit.core import mesh

L, R = ip_address("10.10.0.1"), ip_address("10.10.0.2")
SA = Sa(R, L, 1, Key(bytes(range(36))), mark=Mark(0x1000D0, 0xFFF01FFF))
HERE = mesh.pod(1).addresses[0]


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel(mesh.LINKS)
    made.observe()
    return made


def finds(kernel: FakeKernel) -> bool:
    return any([*kernel.look()])


def test_it_promises_what_the_seam_does():
    verbs = {name for name in vars(Kernel) if not name.startswith("_")}
    assert verbs <= set(dir(FakeKernel))


def test_of_what_it_did_itself_it_is_not_told(kernel):
    kernel.apply((ops.AddSa(SA), ops.InstallNatExemption()))
    assert not kernel.changed()


@pytest.mark.parametrize(
    "change",
    [
        lambda kernel: kernel.sas.clear(),
        lambda kernel: kernel.policies.update({"selector": "policy"}),
        lambda kernel: setattr(kernel, "links", mesh.LINKS[:2]),
        lambda kernel: setattr(kernel, "nat_exemption", True),
    ],
)
@pytest.mark.parametrize("meanwhile", [(), (ops.SetPod(HERE, PodFlags.LOCAL),)])
def test_of_what_somebody_else_did_it_is_told_once_whatever_it_does_itself_meanwhile(kernel, change, meanwhile):
    kernel.apply((ops.AddSa(SA),))
    change(kernel)
    kernel.apply(meanwhile)
    assert (bool(kernel.changed()), bool(kernel.changed())) == (True, False)


@pytest.mark.parametrize(
    "change",
    [
        lambda kernel: kernel.pods.update({HERE: PodFlags.LOCAL}),
        lambda kernel: kernel.peers.update({R: PeerEntry(1, 1, 1, 1)}),
        lambda kernel: kernel.sources.update({HERE: 3}),
        lambda kernel: kernel.pod_devices.add(3),
        lambda kernel: kernel.formers.update({1: 1}),
        lambda kernel: kernel.services.add(mesh.node(1).pod_cidrs[0]),
        lambda kernel: kernel.attachments.add(Attachment(2, "eth0", Program.LEAK_GUARD)),
        lambda kernel: setattr(kernel, "links", mesh.LINKS[:2]),
        lambda kernel: setattr(kernel, "remembered", None),
    ],
)
def test_a_look_finds_what_nobody_tells_of_until_it_is_observed(kernel, change):
    kernel.remember("x" * 36)
    kernel.observe()
    assert not finds(kernel)
    change(kernel)
    assert finds(kernel)
    kernel.observe()
    assert not finds(kernel)


def test_a_look_does_not_find_what_is_written_here_but_what_others_wrote_before(kernel):
    kernel.observe()
    kernel.remember("x" * 36)
    assert not kernel.apply((ops.SetPod(HERE, PodFlags.LOCAL),))
    assert not finds(kernel)
    kernel.pods[HERE] = PodFlags.REMOTE
    kernel.apply((ops.SetSource(HERE, 3),))
    assert finds(kernel)


def test_a_device_that_comes_gets_its_program_and_is_bound_and_what_is_refused_is_told(kernel):
    kernel.pods[HERE] = PodFlags.LOCAL
    kernel.links = (*mesh.LINKS, Link(9, "eth9", "", False, (), leads_out=True))
    kernel.refuse = lambda op: ConfigError("no") if isinstance(op, ops.Attach) and op.attachment.ifindex == 9 else None
    done, failures = kernel.attach_missing((L,), ())
    assert kernel.sources == {HERE: 3}
    assert ops.Attach(Attachment(3, "pod0", Program.MARK_ENCRYPT)) in done
    assert {failure.operation.attachment.ifindex for failure in failures} == {9}
    assert not {failure.operation for failure in failures} & set(done)


def test_everything_is_removed_and_nothing_remembered(kernel):
    kernel.remember("x" * 36)
    kernel.apply((ops.AddSa(SA), ops.SetPod(HERE, PodFlags.LOCAL)))
    assert kernel.remove_everything() == ()
    assert (kernel.sas, kernel.pods, kernel.incarnation()) == ({}, {}, None)


def test_no_key_is_rendered(kernel):
    line = kernel.render(ops.AddSa(SA))
    assert "ip xfrm state add" in line
    assert SA.key.reveal().hex() not in line


def test_an_sa_is_found_by_the_bits_that_it_looks_at_and_the_last_one_added_first(kernel):
    narrow = replace(SA, mark=Mark(0xD0, 0xFF), src=ip_address("10.10.0.9"))
    assert kernel.apply((ops.AddSa(SA), ops.AddSa(replace(SA, spi=2)))) == ()
    assert kernel.find_sa(L, 1, 0x1000D0) is SA
    assert kernel.find_sa(L, 1, 0x4321D0) is None
    (failure,) = kernel.apply((ops.AddSa(replace(SA, src=ip_address("10.10.0.9"))),))
    assert isinstance(failure.error, ConflictError)
    # A packet with its mark would not find the other one, so it may come; and then it stands ahead of it.
    assert kernel.apply((ops.AddSa(narrow),)) == ()
    assert kernel.find_sa(L, 1, 0x1000D0) is narrow
    (failure,) = kernel.apply((ops.AddSa(SA),))
    assert isinstance(failure.error, ConflictError)


def test_a_foreign_policy_in_our_place_is_a_conflict_and_no_object_of_ours(kernel):
    policy = Policy(Direction.OUT, mesh.node(1).pod_cidrs[0], mesh.node(2).pod_cidrs[0], Mark(0xE0, 0xEF), L, R)
    kernel.foreign_policies.add(policy.id)
    (failure,) = kernel.apply((ops.SetPolicy(policy),))
    assert isinstance(failure.error, ConflictError)
    assert kernel.observe().state.policies == {}
    assert kernel.apply((ops.SetPolicy(policy, replace=True),)) == ()
    assert (kernel.observe().state.policies, kernel.foreign_policies) == ({policy.id: policy}, set())


def test_what_is_gone_already_is_absent_as_asked(kernel):
    assert kernel.apply((ops.DeleteSa(SA),)) == ()
