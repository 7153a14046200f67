# SPDX-License-Identifier: Apache-2.0
"""What others do to a node's kernel objects, and what breaks."""

from __future__ import annotations

from kmesh_bpf.core.state import Link, Policy, PolicyId, Program, SaId
from kmesh_bpf.kernel.fake import FakeKernel
from tests.simulator.xfrm import Window


class Breaking(FakeKernel):
    """Objects that somebody else removes. ``strangers``: policies of others; ``windows``: of SAs."""

    strangers: dict[PolicyId, Policy]
    windows: dict[SaId, Window]

    def flush_sas(self) -> None:
        """``ip xfrm state flush``."""
        for held in (self.sas, self.usage, self.windows):
            held.clear()

    def flush_policies(self) -> None:
        """``ip xfrm policy flush``."""
        self.policies.clear()
        self.strangers.clear()

    def delete_sa(self, identity: SaId) -> None:
        """``ip xfrm state delete``."""
        for held in (self.sas, self.usage, self.windows):
            held.pop(identity, None)

    def lose_pins(self) -> None:
        """Remove the pins while no daemon holds them: maps are gone, and programs attached by TCX links with them."""
        for held in (self.pods, self.peers, self.services, self.sources, self.pod_devices, self.formers):
            held.clear()
        self.attachments.clear()
        self.remembered = None

    def detach(self, ifindex: int, program: Program | None = None) -> None:
        """Take a program off a device; None: all of them."""
        self.attachments = {
            one for one in self.attachments if one.ifindex != ifindex or program not in (None, one.program)
        }

    def link_gone(self, ifindex: int) -> None:
        """Remove a device, and with it what is attached to it."""
        self.links = tuple(one for one in self.links if one.ifindex != ifindex)
        self.detach(ifindex)

    def link_comes(self, link: Link) -> None:
        """Add a device, or put it in the place of the one with its number."""
        self.links = (*(one for one in self.links if one.ifindex != link.ifindex), link)

    def reboot(self) -> None:
        """Forget everything but the devices and the node's own masquerade rule."""
        self.flush_sas()
        self.flush_policies()
        self.lose_pins()
        self.nat_exemption = self.policy_hash = False
        self.foreign_sas.clear()
        self.errors.clear()
        self.numbers = dict.fromkeys(self.numbers, 0)
