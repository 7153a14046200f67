# SPDX-License-Identifier: Apache-2.0
"""What others do to policies and maps is known by the real kernel's notifications, looks and audits: that, and no more."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from kmesh_bpf import LinuxKernel, Options, Reconciler, Settings, contract
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.mirror import Keys
from kmesh_bpf.core.policies import ANY, host, to_encrypt
from kmesh_bpf.core.state import Direction, KernelState, PodFlags, Policy
from kmesh_bpf.kernel.maps import open_maps
from kmesh_bpf.kernel.xfrm_events import POLICIES, SAS
from tests.lab.network import run
from tests.unit.core import mesh

POLICY_COUNT, POD_COUNT = 700, 3000
HERE, THERE = ip_address("10.10.0.1"), ip_address("10.10.0.2")


@pytest.fixture
def kernel(netns: str, new_netns: Callable[[], str], pin_root: Path) -> Iterator[LinuxKernel]:
    """A node's kernel; nobody else has touched anything."""
    there = new_netns()
    run(
        f"ip link add eth0 type veth peer name far netns {there}; ip addr add 10.10.0.1/24 dev eth0; ip link set eth0 up"
    )
    with closing(LinuxKernel(pin_root / "node", Settings())) as made:
        made.subscribe()
        made.observe()
        made.changed()
        yield made


@pytest.fixture
def passes(kernel: LinuxKernel) -> Reconciler:
    """Passes over it that have brought it to a plan without SAs: what is for the other nodes' pods is blocked."""
    found = Reconciler(kernel, Options(), lambda: 1000.0, lambda: "fresh".ljust(36, "0"))
    for _ in range(3):
        report = found.run(VIEW)
    assert report.converged
    assert len(report.observed.state.policies) >= 2
    found.changed()
    return found


VIEW = mesh.view(peers=())


def policies(count: int) -> list[Policy]:
    addresses = (ip_address((20 << 24) + number) for number in range(count))
    return [Policy(Direction.OUT, ANY[4], host(one), to_encrypt(0xFF), HERE, THERE) for one in addresses]


def line(policy: Policy, verb: str) -> str:
    """Give what ip does to a policy of ours."""
    text = f"ip xfrm policy {verb} src {policy.src} dst {policy.dst} dir {policy.direction.value}"
    text += f" mark {policy.mark.value:#x} mask {policy.mark.mask:#x}"
    return (
        text
        if verb == "delete"
        else f"{text} priority 7 tmpl src {HERE} dst {THERE} proto esp reqid {contract.REQID} mode tunnel"
    )


def taken(kernel: LinuxKernel) -> KernelState:
    """Give what is there, by dumps alone."""
    return kernel.observe().state


def read(steps: Iterator[bool]) -> bool:
    return any([*steps])


def test_of_what_we_do_nothing_is_told_and_of_what_others_do_the_object(kernel):
    one, other = policies(2)
    kernel.apply([ops.SetPolicy(one), ops.SetPolicy(other), ops.SetPolicy(one, replace=True), ops.DeletePolicy(other)])
    assert not kernel.changed()
    for verb in ("update", "delete", "add"):
        run(line(one, verb))
        assert kernel.changed() == Keys.named("policies", (one.id,)), verb
    theirs = "src 192.0.2.1 dst 192.0.2.2 dir fwd"
    run(f"ip xfrm policy add {theirs} priority 1000 tmpl proto esp reqid 7 mode transport")
    assert not kernel.changed(), "it cannot be ours, nor in the place of ours, nor does it come before ours"
    run(f"ip xfrm policy update {theirs} priority 1 tmpl proto esp reqid 7 mode transport")
    assert kernel.changed() == Keys(rest=True, whole=POLICIES)
    assert kernel.find(Keys(rest=True, whole=POLICIES)).rivals
    run(f"ip xfrm policy delete {theirs}")
    assert kernel.changed() == Keys(rest=True, whole=POLICIES)
    assert not kernel.find(Keys(rest=True, whole=POLICIES)).rivals
    run("ip xfrm policy flush")
    assert kernel.changed() == Keys(whole=POLICIES)
    assert not kernel.changed()


def test_where_notifications_are_lost_all_sas_and_policies_are_to_be_read_anew(kernel):
    assert kernel._events is not None
    kernel._events._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    some = policies(60)
    run("; ".join(line(one, "update") for one in some))
    touched = kernel.changed()
    assert touched.whole == SAS | POLICIES
    run(line(some[0], "delete"))
    assert kernel.changed() == Keys.named("policies", (some[0].id,)), "it goes on as before"


def test_a_policy_that_somebody_takes_or_replaces_is_read_anew_alone_and_put_back(kernel, passes):
    before = taken(kernel)
    one, other = list(before.policies.values())[:2]
    run(f"{line(one, 'delete')}; {line(other, 'update')}")
    asked: list[Keys] = []
    find, kernel.observe = kernel.find, lambda: pytest.fail("all was observed")  # type: ignore[method-assign]
    kernel.find = lambda keys: (asked.append(keys), find(keys))[1]  # type: ignore[method-assign]
    assert set(passes.changed().policies) == {one.id, other.id}
    report = passes.run(VIEW)
    del kernel.observe
    assert set(report.applied) == {ops.SetPolicy(one), ops.SetPolicy(other, replace=True)}
    assert [keys.policies.keys() for keys in asked] == [{one.id, other.id}] * 2, "once to know it, once to read it back"
    assert not any(keys.whole for keys in asked)


def test_a_flush_is_healed(kernel, passes):
    before = taken(kernel)
    run("ip xfrm policy flush")
    assert passes.changed()
    passes.run(VIEW)
    assert taken(kernel).policies == before.policies


def test_an_audit_that_is_left_off_goes_on_and_finds_what_was_done_meanwhile_without_any_notification(kernel, passes):
    ours = policies(POLICY_COUNT)
    kernel.apply([ops.SetPolicy(one) for one in ours])
    passes.doubt(Keys(whole=POLICIES))
    passes.observe()
    audit = passes.audit()
    for _ in range(4):
        assert not next(audit)
    run("; ".join(line(one, "delete") for one in ours[::50]))
    kernel.apply([ops.DeletePolicy(ours[1])])
    assert read(audit)
    kernel.changed()  # without heeding it
    read(passes.audit())  # what went after it had been read is found by the next one
    assert passes.observe().state.policies == taken(kernel).policies
    assert not read(passes.audit())
    pieces = list(kernel.audit(("policies",)))
    assert len(pieces) > 5, "in pieces"
    assert max(len(piece.found) for piece in pieces) < POLICY_COUNT / 2


@pytest.mark.parametrize("change", ["delete", "alter", "add"])
def test_entries_that_others_touch_are_found_among_our_own_writes_and_repaired(kernel, passes, change, pin_root):
    address = next(iter(taken(kernel).pods))
    spare = [ip_address((21 << 24) + number) for number in range(POD_COUNT)]
    kernel.apply([ops.SetPod(one, PodFlags.REMOTE) for one in spare])
    passes.doubt(Keys(whole=frozenset({"pods"})))
    passes.observe()
    assert not read(passes.look())
    look = passes.look()
    for number in range(3):
        next(look)
        kernel.apply([ops.DeletePod(spare[number]), ops.SetPod(spare[-number - 1], PodFlags.LOCAL)])
    passes.doubt(Keys.named("pods", (*spare[:3], *spare[-3:])))
    assert not read(look), "it was us"
    with closing(open_maps(pin_root / "node")) as maps:
        if change == "delete":
            maps.delete_pod(address)
        elif change == "alter":
            maps.set_pod(address, PodFlags.CANDIDATE | PodFlags.OWN | PodFlags.READY)
        else:
            maps.set_pod(ip_address("22.0.0.1"), PodFlags.REMOTE)
    assert read(passes.look())
    assert passes.observe().state.pods == taken(kernel).pods
    passes.run(VIEW)
    assert not read(passes.look())
    assert not read(passes.audit())


def test_a_look_and_an_audit_find_nothing_where_nothing_was_done(kernel, passes):
    for _ in range(2):
        assert not read(passes.look())
        assert not read(passes.audit())
        assert not passes.changed()
        assert passes.run(VIEW).applied == ()
