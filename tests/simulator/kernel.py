# SPDX-License-Identifier: Apache-2.0
"""One node's kernel: a FakeKernel through which packets go, by the rules of the real one.

A packet's way is that of docs/design.md, "A packet's way"; each step asks what is in the kernel at that moment, and
nothing else. Where the real kernel was seen to do otherwise than its sources seem to say, the step says so (:mod:`tests.simulator.differential`
holds this kernel against the real one).

Not here: connection tracking (each packet is a flow of its own; who replies says so), ICMP errors and what they quote,
fragments, several uplinks, bridges, overlays and their second pass, foreign SAs (but for what one of them has
decrypted) and foreign policies by other selectors than ours, ESP in ESP, lo, netfilter
between TC and XFRM, marks that others lay, route caches, a chain of SAs that a growing hash table has put in another
order, and classic filters, whose maps outlive their pins.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from kmesh_bpf import Settings
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.state import Attachment, Direction, Link, Policy, PolicyId, Sa, SaId, SaUsage
from kmesh_bpf.core.view import Address
from kmesh_bpf.errors import ConflictError
from tests.simulator.breaking import Breaking
from tests.simulator.datapath import Datapath, Seen
from tests.simulator.noted import NotedDict, NotedSet, noted
from tests.simulator.packets import Fate, Frame, Inner
from tests.simulator.xfrm import LOW, Sad, Spd, Window

HELD = {"sas", "policies", "strangers", "pods", "peers", "sources", "formers", "attachments", "services", "pod_devices"}
BYTES = 84
"""What a packet counts for in an SA's usage: a ping's."""


class Nat(NamedTuple):
    """What the node's rules make of a packet: its new destination, ahead of the route, and its new source, after it.

    ``reply``: it belongs to a connection that connection tracking has masqueraded; what becomes of it is no rule's.
    """

    dnat: Address | None = None
    masquerade: Address | None = None
    reply: bool = False


class NodeKernel(Breaking):
    """Packets by the objects that it holds. ``settings``: those of the programs, compiled in.

    ``came``: in which order programs were attached; one that takes the place of another keeps it.
    ``strangers``: policies of others, which stand where they are in nobody's way but of one of ours by the same selector.
    ``masquerades``: a rule of the node's gives what leaves by the uplink the uplink's own address, on its way out.
    """

    def __init__(
        self,
        links: Sequence[Link] = (),
        clock: Callable[[], float] = lambda: 0.0,
        settings: Settings = Settings(),  # noqa: B008 # a value
    ) -> None:
        super().__init__(links, clock)
        self.settings = self.former = settings
        self.masquerades = False
        self.strangers: dict[PolicyId, Policy] = {}
        self.windows: dict[SaId, Window] = {}
        self.came: dict[Attachment, int] = {}
        self._datapath = Datapath(self)
        self.places: dict[PolicyId, int] = {}
        self._sad, self._spd = Sad(()), Spd((), {}, policy_hash=False)
        self._sorted: tuple[object, ...] = ()
        self._places = _Places(())

    def __setattr__(self, name: str, value: object) -> None:
        """Note when the objects that a node holds change, whoever changes them."""
        super().__setattr__(name, noted(value) if name in HELD else value)

    # What happens to packets.

    def send(
        self,
        inner: Inner,
        *,
        dnat: Address | None = None,
        masquerade: Address | None = None,
        device: int | None = None,
    ) -> Fate:
        """Take a packet from a pod's device: that of ``inner.src``, or another one, by its ifindex (spoofed)."""
        places = self._now()
        came_by = device if device is not None else places.pods.get(inner.src)
        if came_by is None:
            return Fate(why=f"no device of the node leads to {inner.src}")
        seen = self._datapath.run(came_by, inner.src, inner.dst, 0, egress=False)
        if seen.dropped:
            return _dropped(seen, inner)
        return self._forward(inner, seen.mark, None, Nat(dnat, masquerade))

    def send_own(self, inner: Inner, *, dnat: Address | None = None, masquerade: Address | None = None) -> Fate:
        """Take a packet that the node itself sends."""
        self._now()
        if dnat is not None:
            inner = Inner(inner.src, dnat, inner.ident)
        return self._out(inner, 0, None, Nat(None, masquerade))

    def receive(
        self,
        frame: Frame,
        *,
        dnat: Address | None = None,
        masquerade: Address | None = None,
        reply: bool = False,
    ) -> Fate:
        """Take a frame from the wire; ``dnat``, ``masquerade``, ``reply``: of the clear packet, or of that within.

        A packet for somebody else is forwarded, and then the frame that it leaves as is in the fate.
        """
        places = self._now()
        nat = Nat(dnat, masquerade, reply)
        if places.uplink is None:
            return Fate(why="the node has no uplink")
        if frame.spi is None:
            seen = self._datapath.run(places.uplink, frame.src, frame.dst, 0, egress=False)
            return _dropped(seen, frame.inner) if seen.dropped else self._forward(frame.inner, seen.mark, None, nat)
        seen = self._datapath.run(places.uplink, frame.src, frame.dst, 0, egress=False, esp=True)
        if seen.dropped:
            return _dropped(seen, frame.inner)
        if frame.src.version == 4 and frame.src in places.own:
            return Fate(why=f"ESP from {frame.src}, which is this node's: a martian source")  # fib_validate_source
        if frame.dst not in places.own:
            return self._pass_on(frame, seen.mark, places.uplink)
        return self._decrypt(frame, frame.spi, seen.mark, nat)

    def take_from_stranger(self, inner: Inner, mark: int, *, our_reqid: bool) -> Fate:
        """Take a packet that somebody else's SA has decrypted, and whose policy lets it pass.

        ``mark``: laid on it by that SA. ``our_reqid``: it has our reqid, a number that anybody may choose.
        """
        places = self._now()
        pod = places.pods.get(inner.dst)
        if places.uplink is None or pod is None:
            return Fate(why=f"no way to {inner.dst}")
        for device, egress in ((places.uplink, False), (pod, True)):
            seen = self._datapath.run(device, inner.src, inner.dst, mark, egress=egress, decrypted_here=our_reqid)
            if seen.dropped:
                return _dropped(seen, inner)
            mark = seen.mark
        return Fate(delivered=inner)

    def _pass_on(self, frame: Frame, mark: int, uplink: int) -> Fate:
        """Take ESP for somebody else, which is forwarded as anything is."""
        error = _check(self._spd.find(Direction.FWD, frame.src, frame.dst, mark), None)
        if error:
            return self._refused(error, f"ESP {frame.src} -> {frame.dst} with mark {mark:#x}")
        frame = replace(frame, src=self._masquerade(frame.src.version) or frame.src)
        seen = self._datapath.run(uplink, frame.src, frame.dst, mark, egress=True, esp=True)
        return _dropped(seen, frame.inner) if seen.dropped else Fate(frame, why=f"ESP for {frame.dst}, passed on")

    def _decrypt(self, frame: Frame, spi: int, mark: int, nat: Nat) -> Fate:
        """Take ESP for this node (xfrm_input), then what was within it, on the same device again."""
        sa = self._sad.inbound(frame.dst, spi, mark)
        if sa is None:
            return self._refused("XfrmInNoStates", f"ESP for {frame.dst} with SPI {spi:#x} and mark {mark:#x}")
        error = self.decapsulate(sa, frame)
        if error:
            return self._refused(error, f"number {frame.sequence} of SPI {spi:#x} from {frame.src}")
        inner = frame.inner
        if not sa.any_family and inner.src.version != sa.src.version:
            return self._refused("XfrmInStateModeError", "a packet of the other family within")
        if sa.output_mark is not None:
            mark = mark & ~sa.output_mark.mask | sa.output_mark.value
        assert self._places.uplink is not None
        seen = self._datapath.run(self._places.uplink, inner.src, inner.dst, mark, egress=False, decrypted_here=True)
        if seen.dropped:
            return _dropped(seen, inner)
        return self._forward(inner, seen.mark, sa, nat)

    def decapsulate(self, sa: Sa, frame: Frame) -> str:
        """Take a frame by an SA; give the error, empty: none (xfrm_input)."""
        usage, window = self.usage[sa.id], self._window(sa)
        if window.refuses(frame.sequence):
            self.usage[sa.id] = replace(usage, replays=usage.replays + 1)
            return "XfrmInStateSeqError"
        authentic = (
            sa.key == frame.key
            and (sa.replay_window > 0) == frame.esn
            and (not frame.esn or window.high(frame.sequence) == frame.sequence >> 32)
        )
        if not authentic:
            self.usage[sa.id] = replace(usage, integrity_failures=usage.integrity_failures + 1)
            return "XfrmInStateProtoError"
        window.take(frame.sequence)
        self._count(sa, usage, window.top)
        return ""

    def encapsulate(self, sa: Sa, inner: Inner) -> Frame | None:
        """Give a packet as the frame that an SA makes of it, None: its numbers are used up (xfrm_output_one)."""
        usage = self.usage[sa.id]
        number = usage.sequence + 1
        if number > LOW and not sa.replay_window:
            return None
        self._count(sa, usage, number)
        return Frame(sa.src, sa.dst, inner, sa.spi, sa.key, number, sa.replay_window > 0)

    def _forward(self, inner: Inner, mark: int, sa: Sa | None, nat: Nat) -> Fate:
        """Take a packet behind TC's ingress; ``sa``: that which has decrypted it."""
        places = self._places
        if inner.src in places.own and inner.src.version == 4:
            return Fate(why=f"{inner.src} is this node's: a martian source")  # fib_validate_source
        original = inner.dst
        if nat.dnat is not None:
            inner = Inner(inner.src, nat.dnat, inner.ident)
        to_node = inner.dst in places.own
        if not places.unchecked:
            # NAT is undone for the check (nf_nat_decode_session).
            direction = Direction.IN if to_node else Direction.FWD
            error = _check(self._spd.find(direction, inner.src, original, mark), sa)
            if error:
                return self._refused(error, f"{inner.src} -> {inner.dst} with mark {mark:#x}")
        if to_node:
            return Fate(delivered=inner)
        return self._out(inner, mark, sa, nat)

    def _out(self, inner: Inner, mark: int, sa: Sa | None, nat: Nat) -> Fate:
        """Take a packet that has been routed: to a pod here, or out by the uplink."""
        places = self._places
        if inner.dst in places.own:
            return Fate(delivered=inner)
        pod = places.pods.get(inner.dst)
        device = pod if pod is not None else places.uplink
        if device is None:
            return Fate(why=f"no route to {inner.dst}")
        by = self._transformation(inner, mark, device)
        if isinstance(by, Fate):
            return by
        ours = mark & self.settings.mark_mask
        if self.nat_exemption and nat.reply and by is None and ours == 0xF0 & self.settings.mark_mask:
            mark &= ~0x30  # the chain "answers" (kmesh_bpf.core.masquerade)
        exempt = self.nat_exemption and ours == 0xE0 & self.settings.mark_mask
        # A packet that a policy selects has the tunnel's device by now, also one for a pod here (seen: 6.12).
        leaves = device == places.uplink or by is not None
        source = (nat.masquerade or self._masquerade(inner.dst.version)) if leaves and not nat.reply else None
        if source is not None and source != inner.src and not (exempt and by is not None):
            inner = Inner(source, inner.dst, inner.ident)
            by = self._transformation(inner, mark, device)  # nf_xfrm_me_harder: once more with the new source
            if isinstance(by, Fate):
                return by
        if by is not None:
            return self._encrypt(inner, mark, by, masqueraded=source is not None and not exempt)
        seen = self._datapath.run(device, inner.src, inner.dst, mark, egress=True, decrypted_here=sa is not None)
        if seen.dropped:
            return _dropped(seen, inner)
        if device == pod:
            if inner.src == inner.dst and inner.src.version == 4:
                return Fate(why=f"{inner.src} is the pod's own: a martian source there")
            return Fate(delivered=inner)
        return Fate(Frame(inner.src, inner.dst, inner), why="sent in clear")

    def _transformation(self, inner: Inner, mark: int, device: int) -> Sa | Fate | None:
        """Find what the route look-up ends in (xfrm_lookup): the SA to send by, None for none, or a refusal."""
        if self._places.without_xfrm and device == self._places.uplink:
            return None
        policy = self._spd.find(Direction.OUT, inner.src, inner.dst, mark)
        if policy is None:
            return None
        if policy.block:
            return self._refused("XfrmOutPolBlock", f"{inner.src} -> {inner.dst} with mark {mark:#x}")
        sa = self._sad.outbound(policy, inner.src.version, self.usage)
        if sa is None:
            # No key manager listens: a larval state is not waited for (xfrm_larval_drop).
            return self._refused("XfrmOutNoStates", f"{policy.tunnel_src} -> {policy.tunnel_dst}")
        return sa

    def _encrypt(self, inner: Inner, mark: int, sa: Sa, *, masqueraded: bool) -> Fate:
        uplink = self._places.uplink
        if uplink is None:
            return Fate(why=f"no route to {sa.dst}")
        frame = self.encapsulate(sa, inner)
        if frame is None:
            return self._refused("XfrmOutStateSeqError", f"{LOW} packets are all that an SA without ESN sends")
        source = self._masquerade(sa.src.version) if masqueraded else None
        if source is not None and source != sa.src:
            frame = replace(frame, src=source)
        # What is within has no part in what the guard sees; the security path is begun anew (xfrm_output).
        seen = self._datapath.run(uplink, frame.src, frame.dst, mark, egress=True, esp=True)
        return _dropped(seen, inner) if seen.dropped else Fate(frame, why="sent as ESP")

    # What the steps ask.

    def _now(self) -> _Places:
        """Take in what may have changed since the packet before, whoever changed it."""
        if self._places.links is not self.links:
            self._places = _Places(self.links)
        sas, *spd = now = (self.stamp("sas"), self.stamp("policies"), self.stamp("strangers"), self.policy_hash)
        if now != self._sorted:
            before = self._sorted or (None,)
            if spd != list(before[1:]):
                policies = (*self.policies.values(), *self.strangers.values())
                self._spd = Spd(policies, self.places, policy_hash=self.policy_hash)
            if sas != before[0]:
                self._sad = Sad(self.sas.values())
            self._sorted = now
        return self._places

    def stamp(self, name: str) -> int:
        """Give a number that is another one whenever the objects of that name have changed."""
        held: NotedDict | NotedSet = getattr(self, name)
        return held.stamp

    def _masquerade(self, version: int) -> Address | None:
        """Give the address that a masquerade rule chooses, None: there is no rule."""
        return next((one for one in self._places.choice if one.version == version), None) if self.masquerades else None

    def _window(self, sa: Sa) -> Window:
        return self.windows.setdefault(sa.id, Window(sa.replay_window))

    def _count(self, sa: Sa, before: SaUsage, sequence: int) -> None:
        self.usage[sa.id] = SaUsage(
            before.added,
            int(self.clock()),
            before.packets + 1,
            before.bytes + BYTES,
            sequence,
            before.replays,
            before.integrity_failures,
        )

    def _refused(self, error: str, what: str) -> Fate:
        self.errors[error] = self.errors.get(error, 0) + 1
        return Fate(xfrm_error=error, why=f"XFRM refused it, {error}: {what}")

    # What the daemon does.

    def _apply(self, operation: Operation) -> None:
        if isinstance(operation, ops.SetPolicy):
            if not operation.replace and operation.policy.id in self.strangers:
                raise ConflictError("add policy", str(operation.policy.id), errno.EEXIST)
            self.strangers.pop(operation.policy.id, None)
            identity, priority = operation.policy.id, operation.policy.priority
            there = self.policies.pop(identity, None) if operation.replace else self.policies.get(identity)
            if there is None or (operation.replace and there.priority != priority):
                self.places[identity] = len(self.log)
        if isinstance(operation, ops.Attach):
            wanted = replace(operation.attachment, current=True)
            if wanted not in {replace(one, current=True) for one in self.attachments}:
                self.came[wanted] = len(self.log)
        super()._apply(operation)

    def _add_sa(self, sa: Sa) -> None:
        super()._add_sa(sa)
        self.windows[sa.id] = Window(sa.replay_window)

    def load(self, settings: Settings) -> None:
        """Have other programs loaded, as a start with other settings does: the old ones stay where they are attached."""
        if settings != self.settings:
            self.former, self.settings = self.settings, settings
            self.attachments = {replace(one, current=False) for one in self.attachments}


class _Places:
    """Where addresses are, by the node's devices: ``pods`` by device, ``own`` the node's; ``choice``: the uplink's."""

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = links
        out = [link for link in links if link.leads_out]
        self.uplink = out[0].ifindex if out else None
        self.choice = out[0].addresses if out else ()
        self.without_xfrm = bool(out and out[0].xfrm_disabled)
        self.unchecked = bool(out and out[0].unchecked)
        self.own = frozenset(address for link in links for address in link.addresses)
        self.pods = {
            address: link.ifindex
            for link in links
            if not link.leads_out
            for address in link.far_addresses or ()
            if address not in self.own
        }


def _check(policy: Policy | None, sa: Sa | None) -> str:
    """Give the error of the check that every packet passes on its way in (__xfrm_policy_check), empty: none."""
    if policy is None:
        return "XfrmInNoPols" if sa is not None else ""
    if policy.block:
        return "XfrmInPolBlock"
    fits = sa is not None and (sa.src, sa.dst) == (policy.tunnel_src, policy.tunnel_dst) and policy.spi in (0, sa.spi)
    return "" if fits else "XfrmInTmplMismatch"


def _dropped(seen: Seen, inner: Inner) -> Fate:
    return Fate(counter=seen.counter, why=f"a program dropped it, {seen.counter}: {inner.src} -> {inner.dst}")
