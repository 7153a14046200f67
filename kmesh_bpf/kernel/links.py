"""The network devices of the namespace, by pyroute2, and a socket that tells when they change."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kmesh_bpf._abi import lib
from kmesh_bpf.core.state import Link
from kmesh_bpf.core.view import Address
from kmesh_bpf.errors import KernelError
from kmesh_bpf.kernel.netlink import NetlinkSocket

GROUPS: int = lib.RTMGRP_LINK | lib.RTMGRP_IPV4_IFADDR | lib.RTMGRP_IPV6_IFADDR | lib.RTMGRP_TC
MADE: tuple[int, ...] = (lib.RTM_NEWQDISC, lib.RTM_NEWCHAIN, lib.RTM_NEWTFILTER)
"""Nothing of ours is missing when these come, and we make them ourselves."""
RT_SCOPE_UNIVERSE = 0  # linux/rtnetlink.h
LONGEST_LISTED = 25.0
"""Seconds that a list serves without any notification: less than a daemon waits when nothing happens."""


def list_links(ip: IPRoute) -> tuple[Link, ...]:
    """Give all devices with their addresses of global scope.

    Raises:
        KernelError: the kernel did not answer, or the dump was interrupted.

    """
    try:
        links, addresses = list(ip.get_links()), list(ip.get_addr())
    except NetlinkError as error:
        raise KernelError("list", "network devices", error.code or 0, str(error)) from error
    by_index: dict[int, list[Address]] = {}
    for found in addresses:
        if found["scope"] != RT_SCOPE_UNIVERSE:
            continue
        text = found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS")
        if text:
            by_index.setdefault(found["index"], []).append(ip_address(text))
    return tuple(_link(found, tuple(by_index.get(found["index"], ()))) for found in links)


def _link(found: Any, addresses: tuple[Address, ...]) -> Link:
    info = found.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    return Link(
        ifindex=found["index"],
        name=found.get_attr("IFLA_IFNAME"),
        kind=kind,
        # The kernel names the namespace of a veth's other end only where it is another one. Vlans and tunnels have the
        # attribute too, for the namespace of the device below.
        peer_elsewhere=kind == "veth" and found.get_attr("IFLA_LINK_NETNSID") is not None,
        addresses=addresses,
    )


class LinkWatcher:
    """Tells that a device or address has come, gone or changed in the caller's namespace, or a qdisc or filter gone."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(lib.NETLINK_ROUTE, GROUPS)

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

    def drain(self) -> bool:
        """Take what is waiting; tell whether there was anything to look into."""
        return any(number not in MADE for number, _ in self._socket.drain())


class Links:
    """The devices, listed again only when something about them has changed, or after some time.

    Listing them is more than half of the work of an observation in which all else is as it was.
    ``clock`` gives seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._watcher = LinkWatcher()  # before the first list: what changes after it is told
        self._ip = IPRoute()
        self._listed: tuple[Link, ...] | None = None
        self._listed_at = 0.0

    def close(self) -> None:
        """Close both sockets."""
        self._watcher.close()
        self._ip.close()

    def list(self) -> tuple[Link, ...]:
        """Give the same as :func:`list_links`.

        Raises:
            KernelError: as there.

        """
        changed, now = self._watcher.drain(), self._clock()
        if changed or self._listed is None or now - self._listed_at > LONGEST_LISTED:
            self._listed, self._listed_at = None, now  # None: if it fails now, it is tried again
            self._listed = list_links(self._ip)
        return self._listed
