# SPDX-License-Identifier: Apache-2.0
"""What a reconciler takes for what is in the kernel is what is there, whatever others do between its steps.

Notifications, steps of looks and of audits, passes and others' changes come in any order.
"""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from kmesh_bpf import KernelError, Reconciler
from kmesh_bpf.core.mirror import MAPPINGS, Keys
from kmesh_bpf.core.state import KernelState, PodFlags
from kmesh_bpf.kernel.fake import FakeKernel
from tests.unit.test_remembering import POOL, History, key


class Touched(History):
    """A history in which others change, remove and add objects one by one, and a reconciler looks, audits and passes."""

    def __init__(self, draw):
        super().__init__(draw)
        self.number = 0
        self.passes = Reconciler(self.kernel, self.options, self.clock, lambda: "fresh".ljust(36))
        self.begun = {"look": iter(()), "audit": iter(())}
        self.passes.run(self.view)

    def somebody_alters(self):
        kernel, name = self.kernel, self.draw(st.sampled_from(MAPPINGS))
        held = getattr(kernel, name)
        if not held:
            return
        one = self.draw(st.sampled_from(sorted(held, key=repr)))
        self.number += 1
        if self.draw(st.booleans()):
            del held[one]
            kernel.usage.pop(one, None)
            return
        match name:
            case "sas":
                held[one] = replace(held[one], key=key(99 + self.number % 99))
            case "policies":
                held[one] = replace(held[one], priority=self.number)
            case "pods":
                held[one] = PodFlags(held[one] ^ PodFlags.READY)
            case "peers":
                held[one] = replace(held[one], spi=held[one].spi + 1)
            case _:
                held[one] += 1

    def somebody_adds(self):
        self.number += 1
        address = self.draw(st.sampled_from(POOL))
        match self.draw(st.integers(0, 3)):
            case 0:
                self.kernel.pods[address] = PodFlags.LOCAL
            case 1:
                self.kernel.sources[address] = self.number
            case 2:
                self.kernel.formers[self.number] = 1
            case 3:
                self.kernel.attachments = set(list(self.kernel.attachments)[1:])

    def step(self, what: str):
        """Do a step of a look or an audit, or begin one."""
        if next(self.begun[what], None) is None:
            self.begun[what] = getattr(self.passes, what)()

    def a_look_goes_on(self):
        self.step("look")

    def an_audit_goes_on(self):
        self.step("audit")

    def notifications_are_taken(self):
        self.passes.changed()

    def a_pass(self):
        self.now += 0.1
        self.passes.run(self.view)

    def a_pass_that_is_refused(self):
        self.kernel.refuse = lambda operation: KernelError("do", "something", 12) if self.now % 1 < 0.5 else None
        self.a_pass()
        self.kernel.refuse = lambda _: None


THINGS = sorted(
    name
    for kind in (History, Touched)
    for name in vars(kind)
    if not name.startswith("_") and name not in ("happen", "clock", "step")
)


def lived(data) -> Touched:
    history = Touched(data.draw)
    for _ in range(data.draw(st.integers(1, 25))):
        getattr(history, data.draw(st.sampled_from(THINGS)))()
    return history


def is_there(kernel: FakeKernel) -> KernelState:
    """Give what is there, without the kernel's taking note of it."""
    return kernel._state()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_after_notifications_and_a_look_all_is_known_as_it_is(data):
    history = lived(data)
    history.passes.changed()
    for _ in history.passes.look():
        pass
    assert history.passes.observe().state == is_there(history.kernel)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_after_an_audit_and_what_is_little_all_is_known_as_it_is_without_any_notification(data):
    history = lived(data)
    for _ in history.passes.audit():
        pass
    history.passes.doubt_rest()
    found = history.passes.observe()
    assert found.state == is_there(history.kernel)
    assert dict(found.usage) == history.kernel.usage


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_what_is_repaired_stays_and_is_looked_into_no_more(data):
    history = lived(data)
    history.passes.changed()
    for _ in history.passes.look():
        pass
    for _ in range(3):
        history.now += 1  # two outbound SAs of one tunnel are not made within a second
        report = history.passes.run(history.view)
    assert report.converged
    assert not any(history.passes.look())
    assert not any(history.passes.audit())
    assert not history.passes.changed()
    before = len(history.kernel.log)
    history.passes.run(history.view)
    assert len(history.kernel.log) == before


def test_of_many_objects_the_mapping_is_read_as_a_whole():
    keys = Keys.named("pods", range(2000))
    known = KernelState(pods=dict.fromkeys(range(3000), PodFlags.LOCAL))
    assert keys.cheapest(known) == Keys(whole=frozenset({"pods"}))
    assert keys.cheapest(KernelState(pods=dict.fromkeys(range(100_000), PodFlags.LOCAL))) == keys
