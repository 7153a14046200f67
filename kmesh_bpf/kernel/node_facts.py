# SPDX-License-Identifier: Apache-2.0
"""Reads what :mod:`kmesh_bpf.core.doctor` judges: this node, in the network namespace of the caller.

What the kernel can do is tried in a network namespace of its own, which ends with it: nothing of the node is touched.
"""

from __future__ import annotations

import ctypes
import gzip
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from kmesh_bpf.core import marks
from kmesh_bpf.core import operations as ops
from kmesh_bpf.core.doctor import OPTIONS, Device, Facts, Finding, Missing, beside_the_plan, findings
from kmesh_bpf.core.state import KernelState, Mark, Observation, Sa
from kmesh_bpf.core.view import KEY_BYTES, Key
from kmesh_bpf.errors import ConfigError, KmeshBpfError, UnsupportedError
from kmesh_bpf.kernel import bpf, nat, pin_root, privileges, xfrm_stat
from kmesh_bpf.kernel.fib_rules import fib_rules
from kmesh_bpf.kernel.links import list_links, open_iproute, open_socket
from kmesh_bpf.kernel.linux import LinuxKernel
from kmesh_bpf.kernel.netlink import NetlinkSocket
from kmesh_bpf.kernel.programs import Settings
from kmesh_bpf.kernel.xfrm import Xfrm

CLONE_NEWNET = 0x40000000
"""linux/sched.h."""
TIME_ERROR = 5
"""What adjtimex(2) gives where nothing keeps the clock."""
TIMEX_BYTES = 512
"""More than a struct timex (sys/timex.h) has anywhere."""
CLASS, SYSCTLS = Path("/sys/class/net"), Path("/proc/sys/net")
CONFIGURATIONS = ("/proc/config.gz", "/boot/config-{release}", "/lib/modules/{release}/config")


def diagnose(root: Path, settings: Settings) -> tuple[Finding, ...]:
    """Examine this node: :func:`kmesh_bpf.core.doctor.findings` of :func:`read`, with the errors of that."""
    return findings(read(root, settings), settings.mark_mask)


def look_around() -> tuple[Finding, ...]:
    """Give what a daemon that starts does not find out by its passes: :func:`kmesh_bpf.core.doctor.beside_the_plan`.

    Raises:
        DecodeError, KernelError: the kernel could not be observed.

    """
    with open_iproute() as ip, open_socket() as sock:
        links = list_links(ip, sock)
    return beside_the_plan(around(Observation(KernelState(), links=links)))


def read(root: Path, settings: Settings) -> Facts:
    """Read everything. ``root``: the pin root of a daemon, which need not have run.

    Raises:
        UnsupportedError: the kernel does not permit it to this process.
        KmeshBpfError: the kernel could not be observed.

    """
    privileges.need(*privileges.Capability)
    missing = (*_bpffs(root), *tried(settings))
    with closing(LinuxKernel(root, settings, load=False)) as kernel:
        observed = kernel.observe()
    with NetlinkSocket() as sock:
        foreign = sum(found.sa is None for found in Xfrm(sock).dump_sas())
    running = bool(observed.state.attachments)
    return replace(
        around(observed), missing=missing, running=running, foreign_sas=foreign, xfrm_errors=xfrm_stat.read()
    )


def around(observed: Observation) -> Facts:
    """Read what an observation does not tell, and is cheap."""
    release = os.uname().release
    return Facts(
        release=_release(release),
        observed=observed,
        lacking=lacking(release),
        rules=tuple(fib_rules()),
        devices=tuple(devices()),
        rp_filter=tuple(link.name for link in observed.links if _filters_strictly(link.name)),
        cores=len(os.sched_getaffinity(0)),
        synchronised=synchronised(),
        jit=_number(SYSCTLS / "core/bpf_jit_enable", 1) != 0,
    )


def _bpffs(root: Path) -> Iterator[Missing]:
    if not bpf.is_bpffs(root if root.exists() else root.parent):
        yield Missing(f"bpffs at {root.parent}", f"mount -t bpf bpf {root.parent}")
    try:
        pin_root.check_owner(root)
    except ConfigError as error:
        yield Missing(f"the pin root {root}", str(error))


def tried(settings: Settings) -> tuple[Missing, ...]:
    """Try what the daemon will need of the kernel, in a namespace of its own; give what cannot be had."""
    found: list[Missing] = []
    thread = threading.Thread(target=_apart, args=(lambda: _try(settings), found))
    thread.start()
    thread.join()
    return tuple(found)


def _apart(action: Callable[[], Iterator[Missing]], found: list[Missing]) -> None:
    """Do something in a network namespace of this thread's own, and take what it gives."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        found.append(Missing("a network namespace to try in", os.strerror(ctypes.get_errno())))
        return
    found.extend(action())


def _try(settings: Settings) -> Iterator[Missing]:
    with NetlinkSocket() as sock:
        for src, dst in (("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")):
            output = marks.output_mark(settings.mark_mask)
            inbound = Mark(marks.decrypted_mark(settings.mark_mask), settings.mark_mask)
            sa = Sa(ip_address(src), ip_address(dst), 1, Key(bytes(KEY_BYTES)), inbound, output, 4096, any_family=True)
            for failure in Xfrm(sock).apply([ops.AddSa(sa)]):
                yield _missing(failure.error, f"ESP over IPv{sa.src.version}")
    try:
        nat.install(settings.mark_mask)
    except KmeshBpfError as error:
        yield _missing(error, "NAT by nftables")


def _missing(error: KmeshBpfError, what: str) -> Missing:
    return Missing(error.feature, error.remedy) if isinstance(error, UnsupportedError) else Missing(what, str(error))


def _release(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def lacking(release: str) -> frozenset[str] | None:
    """Give the options of OPTIONS that the kernel's configuration has not; None: it is nowhere to be read."""
    for place in CONFIGURATIONS:
        path = Path(place.format(release=release))
        try:
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode(errors="replace")
        except (OSError, EOFError):
            continue
        return frozenset(one.name for one in OPTIONS).difference(re.findall(r"^(CONFIG_\w+)=[ym]$", text, re.MULTILINE))
    return None


def devices() -> Iterator[Device]:
    """Give the devices' sizes, and how what they receive is spread over cores."""
    with open_iproute() as ip:
        found = list(ip.get_links())
    for one in found:
        name, mtu = one.get_attr("IFLA_IFNAME"), one.get_attr("IFLA_MTU")
        if isinstance(name, str) and mtu is not None:
            yield Device(name, mtu, *_queues(name, one["index"]))


def _queues(name: str, ifindex: int) -> tuple[int, bool]:
    """Give how many queues receive, 0: not known, and whether RPS is on; /sys may show another namespace's devices."""
    place = CLASS / name
    if _number(place / "ifindex", 0) != ifindex:
        return 0, False
    queues = list((place / "queues").glob("rx-*"))
    return len(queues), any(_text(queue / "rps_cpus").strip("0,\n ") for queue in queues)


def _filters_strictly(name: str) -> bool:
    """Tell whether the strict filter is on: the kernel takes the higher of a device's and all devices' (ip-sysctl)."""
    places = (SYSCTLS / "ipv4/conf" / one / "rp_filter" for one in ("all", name))
    return max(_number(place, 0) for place in places) == 1


def synchronised() -> bool | None:
    """Tell whether something keeps the clock right; None: the kernel does not say."""
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    return None if state < 0 else state != TIME_ERROR


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path, default: int) -> int:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else default
