# SPDX-License-Identifier: Apache-2.0
"""The network devices of the namespace and what lies behind them, and a socket that tells when something changes.

Lists of devices and of their addresses come from pyroute2. What lies behind them, routes and notifications are read on
our own transport: pyroute2 has no IFA_TARGET_NETNSID, and takes long for tens of thousands of routes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kmesh_bpf._abi import ffi, lib
from kmesh_bpf.core.devices import PAIRS, STACKED
from kmesh_bpf.core.state import Detour, Link
from kmesh_bpf.core.view import Address
from kmesh_bpf.errors import DecodeError, KernelError
from kmesh_bpf.kernel import routes
from kmesh_bpf.kernel.netlink import DUMP_TRIES, NetlinkSocket, attribute, attributes, message, messages

ROUTES: int = lib.RTMGRP_IPV4_ROUTE | lib.RTMGRP_IPV6_ROUTE | 1 << (lib.RTNLGRP_NEXTHOP - 1)
RULES: int = lib.RTMGRP_IPV4_RULE | 1 << (lib.RTNLGRP_IPV6_RULE - 1)
GROUPS: int = lib.RTMGRP_LINK | lib.RTMGRP_IPV4_IFADDR | lib.RTMGRP_IPV6_IFADDR | lib.RTMGRP_TC | ROUTES | RULES
MADE: tuple[int, ...] = (lib.RTM_NEWQDISC, lib.RTM_NEWCHAIN, lib.RTM_NEWTFILTER)
"""Nothing of ours is missing when these come, and we make them ourselves."""
LONGEST_LISTED = 25.0
"""Seconds that a list serves without any notification: less than a daemon waits when nothing happens."""
ROUTES_LISTED = 10.0
"""Seconds, at least, between two lists of routes when some have gone: a device that none leads out by any more is in no
hurry, and routes to other nodes come and go all the time in a large cluster."""
FRESH = 5.0
"""Seconds that the other end of a new device has time to get its address."""
ADDRESS = ffi.sizeof("struct ifaddrmsg")
ADDRESS_BYTES = (4, 16)
FAMILIES = (socket.AF_INET, socket.AF_INET6)
SYSCTLS = Path("/proc/sys/net/ipv4/conf")
BPF = attribute(lib.TCA_KIND, b"bpf\0")
"""What says in a filter's message that it is a BPF program, as ours are."""
NO_XFRM, NO_POLICY = "disable_xfrm", "disable_policy"


@dataclass(frozen=True, slots=True)
class FarEnd:
    """Where the other end of a pair is: the namespace's number in ours, and the ifindex there."""

    namespace: int
    ifindex: int


def open_socket() -> NetlinkSocket:
    """Open a socket for lists. Strict checking (4.20) is what lets another namespace be asked."""
    sock = NetlinkSocket(lib.NETLINK_ROUTE)
    sock.be_strict()
    return sock


def open_iproute() -> IPRoute:
    """Open pyroute2's socket, which is told of no changes: it would have to be emptied."""
    return IPRoute(groups=0)


def list_links(ip: IPRoute, sock: NetlinkSocket) -> tuple[Link, ...]:
    """Give all devices with all that is known of them; none is fresh.

    Raises:
        DecodeError, KernelError: the kernel did not answer, or not as a whole.

    """
    return tuple(
        _with_far_end(link, far_addresses(sock, far) if far else None)
        for link, far in _devices(ip, routes.read(sock).leading)
    )


def far_addresses(sock: NetlinkSocket, far: FarEnd) -> tuple[Address, ...] | None:
    """Give the addresses of global scope of a device in another namespace; None: the kernel does not tell us."""
    header = ffi.new("struct ifaddrmsg *")
    header.ifa_index = far.ifindex
    target = bytes(ffi.buffer(ffi.new("__s32 *", far.namespace)))
    body = bytes(ffi.buffer(header)) + attribute(lib.IFA_TARGET_NETNSID, target)
    try:
        answers = sock.dump(message(lib.RTM_GETADDR, 0, body))
    except KernelError:  # not ours to ask (EACCES), no such feature (EINVAL), gone meanwhile (ENODEV)
        return None
    return tuple(address for _, answer in answers for address in _far_address(answer, far.ifindex))


def _far_address(answer: bytes, ifindex: int) -> Iterator[Address]:
    if len(answer) < ADDRESS:
        raise DecodeError(f"struct ifaddrmsg of {len(answer)} bytes instead of {ADDRESS}")
    header = ffi.from_buffer("struct ifaddrmsg *", answer[:ADDRESS])
    if header.ifa_index != ifindex or header.ifa_scope != lib.RT_SCOPE_UNIVERSE or header.ifa_family not in FAMILIES:
        return
    found = dict(attributes(answer[ADDRESS:]))
    packed = found.get(lib.IFA_LOCAL) or found.get(lib.IFA_ADDRESS)
    if packed and len(packed) not in ADDRESS_BYTES:
        raise DecodeError(f"an address of {len(packed)} bytes")
    if packed:
        yield ip_address(packed)


def _whole_list(what: str, ask: Callable[[], Iterable[Any]]) -> list[Any]:
    """Give a list by pyroute2, which does not look whether it changed under way.

    Raises:
        DecodeError: it did, each time it was asked for.
        KernelError: the kernel refused, or the socket failed.

    """
    for _ in range(DUMP_TRIES):
        try:
            found = list(ask())
        except NetlinkError as error:
            raise KernelError("list", what, error.code or 0, str(error)) from error
        except OSError as error:
            raise KernelError("list", what, error.errno or 0) from error
        if not any(one["header"]["flags"] & lib.NLM_F_DUMP_INTR for one in found):
            return found
    raise DecodeError(f"{what} changed during each of {DUMP_TRIES} lists")


def _addresses(ip: IPRoute) -> dict[int, tuple[Address, ...]]:
    """Give the addresses of global scope of this namespace by ifindex."""
    by_index: dict[int, tuple[Address, ...]] = {}
    for found in _whole_list("addresses", ip.get_addr):
        if found["scope"] != lib.RT_SCOPE_UNIVERSE or found["family"] not in FAMILIES:
            continue
        text = found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS")
        if text:
            by_index[found["index"]] = (*by_index.get(found["index"], ()), ip_address(text))
    return by_index


def _devices(ip: IPRoute, leading: frozenset[int]) -> list[tuple[Link, FarEnd | None]]:
    """Give all devices, and of those whose other end is elsewhere where that is; what is there is not asked."""
    found = _whole_list("network devices", lambda: ip.get_links(ext_mask=lib.RTEXT_FILTER_SKIP_STATS))
    addresses = _addresses(ip)
    of_all = {sysctl: _is_set(sysctl, "all") for sysctl in (NO_XFRM, NO_POLICY)}
    return [_device(one, addresses, leading, of_all) for one in found]


def _device(
    found: Any, addresses: dict[int, tuple[Address, ...]], leading: frozenset[int], of_all: Mapping[str, bool]
) -> tuple[Link, FarEnd | None]:
    index = found["index"]
    name = _text(found.get_attr("IFLA_IFNAME"))
    info, xdp = found.get_attr("IFLA_LINKINFO"), found.get_attr("IFLA_XDP")
    kind = _text(info.get_attr("IFLA_INFO_KIND")) if info else ""
    namespace = found.get_attr("IFLA_LINK_NETNSID")
    below = found.get_attr("IFLA_LINK") or 0
    # The kernel names the namespace of a pair's other end only where it is another one. Vlans and tunnels have the
    # attribute too, for the namespace of the device below.
    far = FarEnd(namespace, below) if kind in PAIRS and namespace is not None else None
    leads_out = index in leading
    link = Link(
        ifindex=index,
        name=name,
        kind=kind,
        peer_elsewhere=far is not None,
        addresses=addresses.get(index, ()),
        master=found.get_attr("IFLA_MASTER") or 0,
        leads_out=leads_out,
        xfrm_disabled=leads_out and (of_all[NO_XFRM] or _is_set(NO_XFRM, name)),
        unchecked=leads_out and (of_all[NO_POLICY] or _is_set(NO_POLICY, name)),
        lower=below if kind in STACKED and namespace is None else 0,
        xdp=bool(xdp and xdp.get_attr("IFLA_XDP_ATTACHED")),
    )
    return link, far


def _text(value: str | bytes | None) -> str:
    """Give a name of the kernel's, which pyroute2 leaves as bytes where it is no UTF-8."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value or ""


def _with_far_end(link: Link, addresses: tuple[Address, ...] | None, *, fresh: bool = False) -> Link:
    return replace(link, far_addresses=addresses, fresh=fresh) if link.peer_elsewhere else link


def _is_set(sysctl: str, name: str) -> bool:
    """Tell whether a sysctl of a device is; the kernel ORs both of these with that of all devices (IN_DEV_ORCONF)."""
    try:
        return (SYSCTLS / name / sysctl).read_text().strip() != "0"
    except OSError:  # gone meanwhile, or a namespace without IPv4
        return False


class LinkWatcher:
    """Tells that a device or address has come, gone or changed in the caller's namespace, or a qdisc or filter gone.

    Of routes only what may change which devices they lead out by: ``leading`` says by which they do. ``wrapping``: one
    wraps packets, and any that comes or goes may be that one.
    """

    def __init__(self) -> None:
        self._socket = NetlinkSocket(lib.NETLINK_ROUTE, GROUPS)
        self.leading: frozenset[int] = frozenset()
        self.wrapping = False
        self.devices_changed = self.routes_changed = self.routes_gone = self._others = False

    def __enter__(self) -> LinkWatcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """Give the descriptor, for ``selectors``."""
        return self._socket.fileno()

    def take_others(self) -> bool:
        """Tell whether filters of TC, BPF programs aside, or rules of routing have come or gone since last asked."""
        found, self._others = self._others, False
        return found

    def drain(self) -> bool:
        """Take what is waiting; tell whether there was anything to look into at once.

        The attributes, which the reader takes back, keep what was said: ``routes_gone`` is in no hurry.
        """
        changed = False
        for data in self._socket.waiting():
            if data is None:
                self.devices_changed = self.routes_changed = self._others = changed = True
                continue
            for header, body in messages(data):
                changed = self._take(int(header.nlmsg_type), body) or changed
        return changed

    def _take(self, number: int, body: bytes) -> bool:
        if number == lib.RTM_NEWROUTE:
            wraps = self.wrapping or routes.wrapping(body) is not None
            new = wraps or not self.leading.issuperset(routes.devices_out(body))
            self.routes_changed = self.routes_changed or new
            return new
        if number == lib.RTM_DELROUTE and self.wrapping:
            self.routes_changed = True
            return True
        if number == lib.RTM_DELROUTE or number in (lib.RTM_NEWNEXTHOP, lib.RTM_DELNEXTHOP):
            self.routes_gone = self.routes_gone or number != lib.RTM_DELROUTE or bool(routes.devices_out(body))
            return False
        if number in (lib.RTM_NEWLINK, lib.RTM_DELLINK, lib.RTM_NEWADDR, lib.RTM_DELADDR):
            self.devices_changed = True
            return True
        filters = number in (lib.RTM_NEWTFILTER, lib.RTM_DELTFILTER) and BPF not in body
        if filters or number in (lib.RTM_NEWRULE, lib.RTM_DELRULE):
            self._others = True
            return True
        return number not in MADE


class Links:
    """The devices, listed again only when something about them has changed, or after some time.

    Routes are listed apart from devices, for there may be many. An end in another namespace tells nobody when it
    changes: one without an address, or that has just come, for addresses come one by one, is asked each time, the
    others with each list that comes of its own accord.
    ``clock`` gives seconds that only grow; ``detours``: routes, when last listed, that wrap packets.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.watcher = LinkWatcher()  # before the first list: what changes after it is told
        self._ip = open_iproute()
        self._socket = open_socket()
        self._found: list[tuple[Link, FarEnd | None]] | None = None
        self._far: dict[tuple[int, FarEnd], tuple[Address, ...] | None] = {}
        self._came: dict[int, float] = {}
        self._listed_at = self._routes_at = -LONGEST_LISTED
        self.detours: tuple[Detour, ...] = ()

    def close(self) -> None:
        """Close all sockets."""
        self.watcher.close()
        self._ip.close()
        self._socket.close()

    def list(self) -> tuple[Link, ...]:
        """Give the same as :func:`list_links`, and which devices are fresh.

        Raises:
            DecodeError, KernelError: as there.

        """
        self.watcher.drain()
        now = self._clock()
        self._list_routes(now)
        if self.watcher.devices_changed or self._found is None or now - self._listed_at > LONGEST_LISTED:
            self._list_devices(now)
        self._ask_far_ends(now)
        if self.watcher.devices_changed:
            self._list_devices(now)
            self._ask_far_ends(now)
        return tuple(self._whole(link, far, now) for link, far in self._found or ())

    def _list_routes(self, now: float) -> None:
        watcher, waited = self.watcher, now - self._routes_at
        if watcher.routes_changed or (watcher.routes_gone and waited > ROUTES_LISTED) or waited > LONGEST_LISTED:
            found = routes.read(self._socket)
            leading, self.detours = found.leading, tuple(sorted(found.detours, key=lambda one: one.where))
            watcher.wrapping = bool(self.detours)
            self._routes_at, watcher.routes_changed, watcher.routes_gone = now, False, False
            if leading != watcher.leading:
                watcher.leading, watcher.devices_changed = leading, True

    def _list_devices(self, now: float) -> None:
        first, slow = self._found is None and not self._came, now - self._listed_at > LONGEST_LISTED
        self._found = None  # if it fails now, it is tried again
        found = _devices(self._ip, self.watcher.leading)
        there = {link.ifindex for link, _ in found}
        self._came = {index: self._came.get(index, now - FRESH if first else now) for index in there}
        ends = {(link.ifindex, far) for link, far in found if far}
        self._far = {} if slow else {end: addresses for end, addresses in self._far.items() if end in ends}
        self._found, self._listed_at, self.watcher.devices_changed = found, now, False

    def _ask_far_ends(self, now: float) -> None:
        """Ask those that are not known to have an address, and those that are young.

        One that does not answer for the first time may have moved on to a third namespace: nobody tells that either.
        """
        for link, far in self._found or ():
            if far is None or (self._far.get((link.ifindex, far)) and not self._is_young(link, now)):
                continue
            addresses = far_addresses(self._socket, far)
            if addresses is None and self._far.get((link.ifindex, far), ()) is not None:
                self.watcher.devices_changed = True
            self._far[link.ifindex, far] = addresses

    def _whole(self, link: Link, far: FarEnd | None, now: float) -> Link:
        if far is None:
            return link
        known = self._far.get((link.ifindex, far))
        return _with_far_end(link, known, fresh=not known and self._is_young(link, now))

    def _is_young(self, link: Link, now: float) -> bool:
        return now - self._came[link.ifindex] < FRESH
