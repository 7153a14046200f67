# SPDX-License-Identifier: Apache-2.0
"""Who remembers comes to what one comes to who begins anew: passes of one reconciler, through random histories.

Beside the kernel that one reconciler brings forward lives a second one, for which each pass is the first.
"""

from copy import deepcopy
from dataclasses import replace
from ipaddress import ip_address, ip_network
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from kmesh_bpf import (
    FakeKernel,
    KernelError,
    Key,
    Node,
    Options,
    Peer,
    Peers,
    Pod,
    Pods,
    Reconciler,
    Report,
    View,
    reconcile,
)
from kmesh_bpf.core import marks
from kmesh_bpf.core.diff import diff
from kmesh_bpf.core.mirror import MAPPINGS, Keys, Mirror, restricted
from kmesh_bpf.core.planner import Planner, make_plan
from kmesh_bpf.core.state import Link
from tests.unit.amount import examples

NAMES = ("n1", "n2", "n3", "n4")
NUMBERS = range(1, 5)
POOL = [ip_address(text) for text in ("10.2.0.1", "10.2.0.2", "10.3.0.1", "10.9.0.1", "10.0.0.3", "fd00:2::1")]
NODES = {number: (ip_address(f"10.0.0.{number}"), ip_address(f"fd00::{number}")) for number in NUMBERS}
CIDRS = [ip_network(text) for text in ("10.2.0.0/24", "10.3.0.0/24", "10.0.0.0/8", "fd00:2::/64")]
LINKS = (
    Link(1, "lo", "", False, ()),
    Link(2, "eth0", "", False, NODES[1], leads_out=True),
    Link(3, "pod0", "veth", True, (), far_addresses=(POOL[3],)),
)


def key(number: int) -> Key:
    return Key(bytes([number]) * 36)


class History:
    """A cluster and a kernel to which things happen, drawn one by one."""

    def __init__(self, draw):
        self.draw = draw
        self.now = 1000.0
        self.options = Options(
            strict=draw(st.booleans()), max_exact=draw(st.sampled_from((0, 2, 100))), uplinks=draw(uplinks)
        )
        peers = tuple(Peer(Node(f"n{n}", NODES[n], f"boot-{n}"), 1, 4096, node_traffic=n > 2) for n in NUMBERS[1:])
        self.view = View(Node("n1", NODES[1], ""), peers, Pods(), {1: key(1)}, announced=1, announced_at=self.now)
        self.peers = Peers(peers)
        self.kernel = FakeKernel(LINKS, self.clock)
        self.touched = False

    def clock(self) -> float:
        return self.now

    def happen(self):
        """Let one thing happen to the cluster, to time, or to the kernel."""
        getattr(self, self.draw(st.sampled_from(EVENTS)))()
        peers = {peer.node.name: peer for peer in self.view.peers}
        self.peers = self.peers.changed({**dict.fromkeys(self.peers.names), **peers})
        self.view = replace(self.view, peers=self.draw(st.sampled_from((self.peers, tuple(self.peers)))))

    def pods_change(self):
        name = self.draw(st.sampled_from((*NAMES, "n9")))
        addresses = self.draw(st.lists(st.sampled_from(POOL), max_size=3))
        pods = tuple(Pod(f"p{number}", name, (one,), settled=True) for number, one in enumerate(addresses))
        self.view = replace(self.view, pods=Pods.of(self.view.pods).changed({name: pods}))

    def peer_changes(self):
        name = self.draw(st.sampled_from(NAMES[1:]))
        old = next((one for one in self.view.peers if one.node.name == name), None)
        others = [one for one in self.view.peers if one is not old]
        if old is not None and self.draw(st.integers(0, 4)) == 0:
            self.view = replace(self.view, peers=tuple(others))
            return
        number = int(name[1])
        node = Node(
            name,
            self.draw(st.sampled_from((NODES[number], NODES[number][:1], NODES[2], (*NODES[number], POOL[0])))),
            f"boot-{number}-{self.draw(st.integers(0, 1))}",
            tuple(self.draw(st.lists(st.sampled_from(CIDRS), max_size=2, unique=True))),
        )
        new = Peer(
            node,
            self.draw(st.integers(0, 3)),
            self.draw(st.sampled_from((0, 4096))),
            node_traffic=self.draw(st.booleans()),
            alive=self.draw(st.booleans()),
            unconfirmed=frozenset(self.draw(st.sampled_from(((), node.addresses[:1])))),
        )
        self.view = replace(self.view, peers=tuple(sorted((*others, new), key=lambda one: one.node.name)))

    def peer_announces(self):
        self.view = replace(self.view, peers=tuple(replace(one, spi=max(self.view.keys)) for one in self.view.peers))

    def key_is_made(self):
        newest = max(self.view.keys) + 1
        older = {number: one for number, one in self.view.keys.items() if number > newest - 3}
        self.view = replace(self.view, keys={**older, newest: key(newest)})

    def key_is_announced(self):
        self.view = replace(self.view, announced=max(self.view.keys), announced_at=self.now)

    def candidates_change(self):
        self.view = replace(self.view, candidates=frozenset(self.draw(st.lists(st.sampled_from(POOL), max_size=3))))

    def services_change(self):
        self.view = replace(self.view, services=tuple(self.draw(st.lists(st.sampled_from(CIDRS), max_size=2))))

    def own_address_changes(self):
        addresses = self.draw(st.sampled_from((NODES[1], NODES[1][:1], (*NODES[1], POOL[3]))))
        self.view = replace(self.view, node=replace(self.view.node, addresses=addresses))

    def time_passes(self):
        self.now += self.draw(st.sampled_from((0.3, 2.0, 11.0, 31.0)))

    def packets_flow(self):
        for identity in [one for one in self.kernel.sas if self._is_found(one) and self.draw(st.booleans())]:
            self.kernel.use(identity, self.now)

    def _is_found(self, identity) -> bool:
        """Tell whether packets find an SA: by the node mark that an entry lays, or by a policy that leads to it."""
        if identity.mark is not None:
            marked = {(entry.node_mark, address.version) for address, entry in self.kernel.peers.items()}
            return (identity.mark.value & marks.UPPER_BITS, identity.dst.version) in marked
        return any(one.tunnel_dst == identity.dst for one in self.kernel.policies.values() if not one.block)

    def somebody_deletes(self):
        """Delete objects of ours, as whoever is told of by a notification or a look."""
        for objects in (self.kernel.sas, self.kernel.policies, self.kernel.pods, self.kernel.peers):
            for one in sorted(objects, key=repr):
                if self.draw(st.integers(0, 3)) == 0:
                    del objects[one]
        for one in self.kernel.usage.keys() - self.kernel.sas.keys():
            del self.kernel.usage[one]
        self.touched = True

    def devices_change(self):
        self.kernel.links = self.draw(st.sampled_from((LINKS, LINKS[:2])))
        self.touched = True


uplinks = st.sampled_from(((), ("eth9",)))
EVENTS = sorted(name for name in vars(History) if not name.startswith("_") and name not in ("happen", "clock"))


def objects(kernel: FakeKernel) -> dict[str, object]:
    names = (*MAPPINGS, "services", "attachments", "pod_devices", "nat_exemption", "policy_hash", "remembered", "usage")
    return {name: getattr(kernel, name) for name in names}


@examples(100)
@given(st.data())
def test_a_reconciler_that_remembers_leaves_in_the_kernel_what_one_leaves_that_begins_anew(data):
    history = History(data.draw)
    kernel = history.kernel

    number = 0

    def fresh() -> str:
        return f"incarnation {number}".ljust(36)

    lasting = Reconciler(kernel, history.options, history.clock, fresh)
    for number in range(data.draw(st.integers(1, 12))):  # noqa: B007 # fresh() gives it
        history.happen()
        if history.touched:
            lasting.forget()
            history.touched = False
        broken = data.draw(st.sampled_from((None, None, None, 2, 3, 5)))
        other = FakeKernel(kernel.links, history.clock)
        vars(other).update(deepcopy({name: vars(kernel)[name] for name in objects(kernel)}))
        other.refuse = kernel.refuse = refusing(broken)
        memory = lasting.memory
        anew = reconcile(other, history.view, history.options, history.clock, fresh, memory=memory)
        assert outcome(kernel, lasting.run(history.view)) == outcome(other, anew)


def outcome(kernel: FakeKernel, report: Report) -> dict[str, object]:
    plan = report.plan
    return {
        **objects(kernel),
        **{name: getattr(report, name) for name in ("converged", "decision", "reachable", "expected", "memory")},
        **{name: getattr(plan, name) for name in ("ready_peers", "by_cidr", "returned")},
        "problems": set(plan.problems),
        "lost": set(plan.lost),
        "seen": report.observed.state,
    }


def refusing(every: int | None):
    """Refuse operations by what they are about, so that both kernels refuse the same."""

    def refuse(operation):
        if every is None or sum(repr(operation).encode()) % every:
            return None
        return KernelError("do", "something", 12)

    return refuse


@examples(100)
@given(st.data())
def test_a_planner_that_remembers_plans_as_one_does_that_begins_anew_and_knows_what_to_look_at(data):
    history = History(data.draw)
    kernel, departed = history.kernel, {}
    few = data.draw(st.sampled_from((2, 100)))  # node ids
    with patch.object(marks, "capacity", lambda _: few):
        _plan_on_and_on(data, history, kernel, departed)


def _plan_on_and_on(data, history, kernel, departed):
    planner, mirror = Planner(history.options), Mirror(kernel.observe())
    keys = Keys()
    for _ in range(data.draw(st.integers(1, 12))):
        history.happen()
        mirror.replace(kernel.observe())
        view = replace(history.view, node=replace(history.view.node, boot_id=kernel.remembered or "boot-1"))
        found = planner.plan(view, mirror, history.now, departed)
        anew = make_plan(view, kernel.observe(), history.options, history.now, departed)
        for name in set(anew.__dataclass_fields__) - {"due", "replanned", "problems", "lost"}:
            assert getattr(found, name) == getattr(anew, name), name
        assert (set(found.problems), set(found.lost)) == (set(anew.problems), set(anew.lost))
        assert anew.due is None or (found.due is not None and found.due <= anew.due)
        state = kernel.observe().state
        keys.add(planner.take_changed())
        everything = diff(found.state, state)
        assert set(diff(restricted(found.state, keys), restricted(state, keys))) == set(everything)
        kernel.remembered, departed = view.node.boot_id, found.departing
        kernel.apply(everything)
        keys = Keys.of(everything)
        if data.draw(st.booleans()):
            planner, mirror = Planner(history.options), Mirror(kernel.observe())
