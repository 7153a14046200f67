# SPDX-License-Identifier: Apache-2.0
"""The real kernel behind the seam: composes XFRM, the pinned maps, TC and nft; decides nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.audits import Piece
from kmesh_bpf.core.diff import diff, missing
from kmesh_bpf.core.entries import HASHES
from kmesh_bpf.core.mirror import MAPPINGS, Keys
from kmesh_bpf.core.operations import Operation
from kmesh_bpf.core.render import render
from kmesh_bpf.core.state import Attachment, KernelState, Link, Observation, PeerEntry
from kmesh_bpf.core.view import Address, Network
from kmesh_bpf.errors import ConfigError, KernelError, KmeshBpfError, UnsupportedError
from kmesh_bpf.kernel import nat, pieces, privileges, programs, xfrm, xfrm_defaults, xfrm_events, xfrm_stat
from kmesh_bpf.kernel.detours import Detours
from kmesh_bpf.kernel.fib_rules import RoutingRules
from kmesh_bpf.kernel.interface import AttachMode, Failure
from kmesh_bpf.kernel.leftovers import GoKmesh
from kmesh_bpf.kernel.links import Links
from kmesh_bpf.kernel.map_folders import find_maps
from kmesh_bpf.kernel.maps import Maps, Thresholds
from kmesh_bpf.kernel.netlink import BATCH_MESSAGES, NetlinkSocket
from kmesh_bpf.kernel.pin_root import check_owner
from kmesh_bpf.kernel.pins import Pins, allow_descriptors
from kmesh_bpf.kernel.programs import LoadedPrograms, Settings
from kmesh_bpf.kernel.rules import Rules
from kmesh_bpf.kernel.tc import TcAttacher
from kmesh_bpf.kernel.thresholds import HashThresholds, lowered
from kmesh_bpf.kernel.xfrm import Xfrm, XfrmOperation


def _batch(operation: Operation) -> object:
    """Give what an operation may go out together with."""
    return XfrmOperation if isinstance(operation, XfrmOperation) else type(operation)


def _told(operation: Operation) -> tuple[Address, PeerEntry] | None:
    """Give what the peer map is to tell of an SA, and of which address, before it is there."""
    match operation:
        case ops.AddSa(sa, entry) | ops.ReplaceSa(_, sa, entry) if entry is not None:
            return sa.dst, entry
    return None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found last of what nobody notifies of changes, and is little."""

    devices: tuple[Link, ...]
    attachments: frozenset[Attachment]
    services: frozenset[Network]
    pod_devices: frozenset[int]
    incarnation: str | None


class LinuxKernel:
    """The kernel as the network namespace that the caller lives in shows it.

    With ``load=False`` (``uninstall``, ``--dry-run``) nothing is compiled: what is pinned is seen, and removed if
    asked, but nothing can be attached.

    Raises:
        ConfigError: the pin root is not a folder of ours.
        LoadError, UnsupportedError, LayoutError: see :func:`kmesh_bpf.kernel.programs.ensure_loaded`; UnsupportedError
            too where the kernel does not permit it to this process.

    """

    def __init__(
        self, pin_root: Path, settings: Settings, *, load: bool = True, attach_mode: AttachMode = "auto"
    ) -> None:
        privileges.need(*privileges.Capability)
        check_owner(pin_root)
        if pin_root.is_mount():
            raise ConfigError(f"pin root {pin_root} is where bpffs is mounted, and everybody's: name a folder below it")
        self.pin_root = pin_root
        self.settings = settings
        self._loaded: LoadedPrograms | None = programs.ensure_loaded(pin_root, settings) if load else None
        folder = self._loaded.maps if self._loaded else find_maps(pin_root)
        self._maps = Maps(folder) if folder else None
        self._socket = NetlinkSocket()
        self._events: NetlinkSocket | None = None
        self._xfrm = Xfrm(self._socket)
        self._thresholds = HashThresholds(self._socket)
        self._links = Links()
        self._tc = TcAttacher(pin_root, attach_mode)
        self._nat = nat.Tables(settings.mark_mask)
        self._rules, self._routing, self._go, self._detours = Rules(), RoutingRules(), GoKmesh(self._socket), Detours()
        self._pins = Pins(pin_root, self._loaded, self._maps, self._tc) if self._loaded and self._maps else None
        self._seen: _Seen | None = None
        allow_descriptors()
        self.former_roots = self._tc.take_over() if load else frozenset()
        """Pin roots of former daemons whose links were taken over."""

    @property
    def compiled(self) -> bool:
        """Whether opening it took a compilation."""
        return self._loaded is not None and self._loaded.compiled

    def close(self) -> None:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`."""
        self._socket.close()
        if self._events:
            self._events.close()
        self._links.close()
        self._nat.close()
        self._tc.close()
        if self._pins:
            self._pins.close()
        if self._maps:
            self._maps.close()

    def subscribe(self) -> tuple[int, ...]:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`."""
        self._events = NetlinkSocket(groups=xfrm.GROUPS)
        descriptors = (self._events.fileno(), self._links.watcher.fileno())
        tables = self._nat.subscribe()
        return descriptors if tables is None else (*descriptors, tables)

    def changed(self) -> Keys:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`."""
        tables, devices = self._nat.changed(), self._links.watcher.drain()
        events = self._events.notifications() if self._events else ()
        found = xfrm_events.touched(events, self._socket.port_id)
        found.rest = found.rest or tables or devices
        return found

    def attach_missing(
        self, node_addresses: Iterable[Address], uplinks: Collection[str]
    ) -> tuple[tuple[Operation, ...], tuple[Failure, ...]]:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`."""
        devices, maps = self._links.list(), self._need_maps()
        state = KernelState(sources=maps.sources(), pod_devices=maps.pod_devices(), attachments=self._attached(devices))
        wanted = missing(devices, node_addresses, uplinks, maps.pod, state)
        failures = self._apply_each(wanted)
        refused = {failure.operation for failure in failures}
        return tuple(one for one in wanted if one not in refused), tuple(failures)

    def look(self) -> Iterator[Keys]:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`; pins that somebody removed are made again on the way."""
        if self._seen is None or self._maps is None:
            return  # there is nothing yet to compare with
        yield Keys(rest=self._pins is not None and self._pins.restore())
        devices = self._links.list()
        yield Keys()
        maps, attached = self._maps, self._attached(devices)
        now = _Seen(devices, attached, maps.services(), maps.pod_devices(), maps.identity())
        yield Keys(rest=now != self._seen)
        for name in HASHES:
            for differs in self._maps.look(name):
                yield Keys(whole=frozenset({name} if differs else ()))

    def audit(self, mappings: Iterable[str] = MAPPINGS) -> Iterator[Piece]:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`."""
        for name in mappings:
            if name in HASHES:
                yield from pieces.of_entries(name, self._need_maps().pieces(name))
                continue
            with NetlinkSocket() as sock:  # of its own: what was asked for waits there, however long it takes
                one = Xfrm(sock)
                yield from pieces.of_sas(one.sa_pieces()) if name == "sas" else pieces.of_policies(one.policy_pieces())

    def observe(self) -> Observation:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`."""
        if self._pins:
            self._pins.restore()
        return self.find(Keys.everything())

    def find(self, keys: Keys) -> Observation:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`."""
        whole = keys.whole
        found = self._xfrm.dump_sas() if "sas" in whole else self._xfrm.find_sas(keys.sas)
        ours = [(one.sa, one.usage) for one in found if one.sa]
        policies = self._xfrm.dump_policies() if "policies" in whole else self._xfrm.find_policies(keys.policies)
        rest = self._found_rest() if keys.rest else Observation(KernelState())
        entries: dict[str, Any] = {name: self._entries(name, keys) for name in HASHES}
        sas, found_policies = {sa.id: sa for sa, _ in ours}, {policy.id: policy for policy in policies}
        state = replace(rest.state, sas=sas, policies=found_policies, **entries)
        return replace(rest, state=state, usage={sa.id: usage for sa, usage in ours})

    def _entries(self, mapping: str, keys: Keys) -> dict[Any, Any]:
        if self._maps is None:
            return {}
        named = getattr(keys, mapping)
        return self._maps.all_of(mapping) if mapping in keys.whole else self._maps.some_of(mapping, named)

    def _found_rest(self) -> Observation:
        rest = self._rest()
        state = rest.state
        self._seen = _Seen(rest.links, state.attachments, state.services, state.pod_devices, rest.incarnation)
        return rest

    def _rest(self) -> Observation:
        """Observe all but the mappings of a KernelState, and the usage of SAs."""
        devices, thresholds = self._links.list(), self._thresholds.found()
        if self._links.watcher.take_others():
            self._detours.tell()
        state = KernelState(
            services=self._maps.services() if self._maps else frozenset(),
            attachments=self._tc.attached(devices, self._loaded),
            nat_exemption=self._nat.installed(),
            pod_devices=self._maps.pod_devices() if self._maps else frozenset(),
            policy_hash=self._lowered(thresholds),
        )
        return Observation(
            state,
            links=devices,
            incarnation=self.incarnation(),
            suspects=(*self._rules.suspects(), *self._routing.suspects(), *self._go.suspects(devices)),
            can_hash=thresholds is not None,
            rivals=self._xfrm.rivals,
            refusing=xfrm_defaults.refusing(self._socket),
            detours=(*self._detours.found(devices), *self._rules.detours(), *self._links.detours),
        )

    def _lowered(self, found: Thresholds | None) -> bool:
        """Tell whether the thresholds are ours: lowered, and those before kept."""
        return found is not None and found == lowered(found) and bool(self._maps and self._maps.thresholds())

    def incarnation(self) -> str | None:
        """Give the incarnation kept in the identity map."""
        return self._maps.identity() if self._maps else None

    def counters(self) -> dict[str, int]:
        """Give the programs' counters by name, summed over the CPUs."""
        return self._need_maps().counters()

    def xfrm_errors(self) -> dict[str, int]:
        """See :func:`kmesh_bpf.kernel.xfrm_stat.read`."""
        return xfrm_stat.read()

    def remember(self, incarnation: str) -> None:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`."""
        self._need_maps().set_identity(incarnation, self.settings.node_mark_mask)
        if self._seen is not None:
            self._seen = replace(self._seen, incarnation=incarnation)

    def apply(self, operations: Sequence[Operation]) -> tuple[Failure, ...]:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`; runs of XFRM operations go out as batches."""
        failures: list[Failure] = []
        for kind, run in groupby(operations, key=_batch):
            together = list(run)
            if kind is XfrmOperation:
                failures.extend(self._apply_xfrm([one for one in together if isinstance(one, XfrmOperation)]))
            elif kind is not ops.SetPod or not self._set_pods(together):
                failures.extend(self._apply_each(together))
        return tuple(failures)

    def remove_stale(self) -> None:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`."""
        if self._loaded:
            programs.remove_stale(self.pin_root, self._loaded)

    def remove_everything(self) -> tuple[Failure, ...]:
        """See :class:`kmesh_bpf.kernel.interface.Kernel`."""
        failures = self.apply(diff(KernelState(), self.observe().state))
        if not failures:
            programs.remove_all(self.pin_root)
        return failures

    def render(self, operation: Operation) -> str:
        """Give an operation as a command line."""
        build = self._loaded or programs.expected(self.pin_root, self.settings)
        return render(operation, str(build.programs), str(build.maps), self.settings.mark_mask)

    def _apply_xfrm(self, operations: Sequence[XfrmOperation]) -> list[Failure]:
        """Carry out XFRM operations; what the peer map tells of SAs is written no earlier than a send before them."""
        failures: list[Failure] = []
        for start in range(0, len(operations), BATCH_MESSAGES):
            going: list[XfrmOperation] = []
            before: dict[Address, PeerEntry | None] = {}
            for one in operations[start : start + BATCH_MESSAGES]:
                if (told := _told(one)) is not None:
                    try:
                        before.setdefault(told[0], self._need_maps().peer(told[0]))
                        self._need_maps().set_peer(*told)
                    except KmeshBpfError as error:
                        failures.append(Failure(one, error))
                        continue
                going.append(one)
            refused = self._xfrm.apply(going)
            failures.extend(refused)
            names = {id(failure.operation) for failure in refused}
            made = {told[0] for one in going if id(one) not in names and (told := _told(one)) is not None}
            self._put_back({address: entry for address, entry in before.items() if address not in made})
        return failures

    def _put_back(self, entries: Mapping[Address, PeerEntry | None]) -> None:
        for address, entry in entries.items():
            if entry is None:
                self._need_maps().delete_peer(address)
            else:
                self._need_maps().set_peer(address, entry)

    def _attached(self, devices: tuple[Link, ...]) -> frozenset[Attachment]:
        held = self._tc.attached_links(devices, self._loaded)
        return held if held is not None else self._tc.attached(devices, self._loaded)

    def _set_pods(self, operations: Sequence[Operation]) -> bool:
        """Write pods with few system calls; False: not all of them, and one by one will tell which."""
        pods = {one.address: one.flags for one in operations if isinstance(one, ops.SetPod)}
        try:
            self._need_maps().set_pods(pods)
        except KernelError:
            return False
        return True

    def _apply_each(self, operations: Sequence[Operation]) -> list[Failure]:
        failures = []
        for operation in operations:
            try:
                self._apply_one(operation)
            except KmeshBpfError as error:
                failures.append(Failure(operation, error))
        return failures

    def _need_maps(self) -> Maps:
        if self._maps is None:
            raise UnsupportedError(f"a pinned map below {self.pin_root}", "start the daemon first")
        return self._maps

    def _apply_one(self, operation: Operation) -> None:
        match operation:
            case ops.SetPeer(address, entry):
                self._need_maps().set_peer(address, entry)
            case ops.DeletePeer(address):
                self._need_maps().delete_peer(address)
            case ops.SetPod(address, flags):
                self._need_maps().set_pod(address, flags)
            case ops.DeletePod(address):
                self._need_maps().delete_pod(address)
            case ops.SetSource(address, ifindex):
                self._need_maps().set_source(address, ifindex)
            case ops.DeleteSource(address):
                self._need_maps().delete_source(address)
            case ops.AddPodDevice(ifindex):
                self._need_maps().add_pod_device(ifindex)
            case ops.DeletePodDevice(ifindex):
                self._need_maps().delete_pod_device(ifindex)
            case ops.SetFormer(pair, spi):
                self._need_maps().set_former(pair, spi)
            case ops.DeleteFormer(pair):
                self._need_maps().delete_former(pair)
            case ops.LowerHashThresholds():
                self._thresholds.lower(self._need_maps())
            case ops.RestoreHashThresholds():
                self._thresholds.restore(self._need_maps())
            case ops.AddService(cidr):
                self._need_maps().add_service(cidr)
            case ops.DeleteService(cidr):
                self._need_maps().delete_service(cidr)
            case ops.Attach(attachment) if self._loaded:
                self._tc.attach(attachment, self._loaded.path(attachment.program))
            case ops.Detach(attachment):
                self._tc.detach(attachment)
            case ops.InstallNatExemption():
                self._nat.install()
            case ops.RemoveNatExemption():
                nat.remove()
