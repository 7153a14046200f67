# SPDX-License-Identifier: Apache-2.0
"""What a node's kernel says of itself, for a bug report: files and the answers of commands. No key is asked for."""

from __future__ import annotations

import gzip
import http.client
import json
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kmesh_bpf import DEFAULT_PIN_ROOT, KmeshBpfError

SECONDS = 20.0
"""For each command."""
MOST_BYTES = 8 << 20
"""Of each answer: a node with a thousand peers has some thousand SAs, of 500 bytes each."""
COMMANDS: dict[str, tuple[str, ...]] = {
    "kernel/uname.txt": ("uname", "-a"),
    "xfrm/state.txt": ("ip", "-s", "-d", "xfrm", "state", "list", "nokeys"),
    "xfrm/policy.txt": ("ip", "-s", "-d", "xfrm", "policy", "list"),
    "xfrm/count.txt": ("ip", "-s", "xfrm", "state", "count"),
    "xfrm/thresholds.txt": ("ip", "-s", "xfrm", "policy", "count"),
    "xfrm/defaults.txt": ("ip", "xfrm", "policy", "getdefault"),
    "net/links.txt": ("ip", "-s", "-d", "link", "show"),
    "net/addresses.txt": ("ip", "address", "show"),
    "net/rules.txt": ("ip", "rule", "show"),
    "net/rules6.txt": ("ip", "-6", "rule", "show"),
    "net/routes.txt": ("ip", "route", "show", "table", "all"),
    "net/routes6.txt": ("ip", "-6", "route", "show", "table", "all"),
    "nft/ruleset.txt": ("nft", "-a", "list", "ruleset"),
    "nft/iptables.txt": ("iptables-save", "-c"),
    "nft/ip6tables.txt": ("ip6tables-save", "-c"),
    "tc/qdiscs.txt": ("tc", "-s", "qdisc", "show"),
    "bpf/net.txt": ("bpftool", "net", "show"),
    "bpf/programs.txt": ("bpftool", "prog", "show"),
    "bpf/maps.txt": ("bpftool", "map", "show"),
    "bpf/links.txt": ("bpftool", "link", "show"),
    "versions/ip.txt": ("ip", "-V"),
    "versions/tc.txt": ("tc", "-V"),
    "versions/nft.txt": ("nft", "--version"),
    "versions/bpftool.txt": ("bpftool", "version"),
    "versions/bcc.txt": ("/usr/bin/python3", "-c", "import bcc; print(bcc.__version__)"),
}
"""By the name in the archive. ``nokeys``: ip prints no key (iproute2 5.1); an older one fails, and says so."""
FILES = {
    "kernel/crypto.txt": "/proc/crypto",
    "kernel/modules.txt": "/proc/modules",
    "kernel/command-line.txt": "/proc/cmdline",
    "xfrm/statistics.txt": "/proc/net/xfrm_stat",
    "net/softnet.txt": "/proc/net/softnet_stat",
    "versions/system.txt": "/etc/os-release",
}
SETTINGS = (
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/conf/*/disable_xfrm",
    "net/ipv4/conf/*/disable_policy",
    "net/ipv4/conf/*/forwarding",
    "net/ipv6/conf/*/disable_xfrm",
    "net/ipv6/conf/*/disable_policy",
    "net/ipv6/conf/*/forwarding",
    "net/core/xfrm_*",
    "net/core/bpf_jit_*",
    "net/ipv4/xfrm4_*",
    "net/ipv6/xfrm6_*",
    "kernel/unprivileged_bpf_disabled",
)
"""Below /proc/sys."""
OPTIONS = re.compile(
    r"XFRM|INET6?_(ESP|AH)|CRYPTO_(GCM|AES|SEQIV|ECHAINIV|GHASH)|BPF|NET_(CLS|ACT|SCH)_|NF_TABLES|NFT_|NF_CONNTRACK|NET_IPIP|VXLAN"
)
"""Of the kernel's configuration."""
HEALTH = ("127.0.0.1", 15020)
"""Where the daemon of a DaemonSet answers (docs/flags.md)."""
PATHS = {"daemon/readyz.txt": "/readyz", "daemon/metrics.txt": "/status/metric"}


class MissingError(KmeshBpfError):
    """Something could not be had; its text says why."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One file of the archive. ``read`` gives its content, or raises MissingError."""

    name: str
    read: Callable[[], bytes]


def facts(pin_root: Path = DEFAULT_PIN_ROOT) -> Iterator[Fact]:
    """Give all that can be asked for."""
    for name, command in COMMANDS.items():
        yield Fact(name, lambda command=command: answer(command))  # type: ignore[misc]
    yield Fact("tc/filters.txt", _filters)
    for name, path in FILES.items():
        yield Fact(name, lambda path=path: content(Path(path)))  # type: ignore[misc]
    yield Fact("kernel/settings.txt", _settings)
    yield Fact("kernel/options.txt", _options)
    yield Fact("bpf/content.json", lambda: _maps(pin_root))
    for name, path in PATHS.items():
        yield Fact(name, lambda path=path: _asked(path))  # type: ignore[misc]


def answer(command: tuple[str, ...]) -> bytes:
    """Run a command; give what it prints.

    Raises:
        MissingError: it is not there, fails, or does not end.

    """
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise MissingError(f"{command[0]} is not installed here") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingError(f"{' '.join(command)}: {type(error).__name__}") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise MissingError(f"{' '.join(command)} ended with {done.returncode}: {words[-1]}")
    return done.stdout[:MOST_BYTES]


def content(path: Path) -> bytes:
    """Read a file.

    Raises:
        MissingError: it cannot be read.

    """
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES)
    except OSError as error:
        raise MissingError(f"{path}: {error.strerror}") from None


def _filters() -> bytes:
    devices = [path.name for path in sorted(Path("/sys/class/net").iterdir())]
    found = []
    for device in devices:
        for where in ("ingress", "egress"):
            command = ("tc", "-s", "filter", "show", "dev", device, where)
            try:
                said = answer(command)
            except MissingError as error:
                said = f"{error}\n".encode()
            if said:
                found.append(f"# {' '.join(command)}\n".encode() + said)
    return b"".join(found)


def _settings() -> bytes:
    root = Path("/proc/sys")
    lines = []
    for pattern in SETTINGS:
        for path in sorted(root.glob(pattern)):
            try:
                lines.append(f"{path.relative_to(root)} = {' '.join(path.read_text().split())}\n")
            except OSError as error:
                lines.append(f"{path.relative_to(root)}: {error.strerror}\n")
    return "".join(lines).encode()


def _options() -> bytes:
    """Give the lines of the kernel's configuration that matter here."""
    try:
        text = gzip.decompress(content(Path("/proc/config.gz"))).decode()
    except MissingError:
        text = content(Path(f"/boot/config-{platform.release()}")).decode(errors="replace")
    return "".join(f"{line}\n" for line in text.splitlines() if OPTIONS.search(line)).encode()


def _maps(pin_root: Path) -> bytes:
    from kmesh import dump_maps  # noqa: PLC0415 # opens BPF maps, which only a node has

    try:
        return json.dumps(dump_maps.read(pin_root), indent=1).encode()
    except (KmeshBpfError, OSError) as error:
        raise MissingError(str(error)) from None


def _asked(path: str) -> bytes:
    connection = http.client.HTTPConnection(*HEALTH, timeout=SECONDS)
    try:
        connection.request("GET", path)
        said = connection.getresponse()
        return f"HTTP {said.status}\n\n".encode() + said.read(MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise MissingError(f"http://{HEALTH[0]}:{HEALTH[1]}{path}: {why}") from None
    finally:
        connection.close()


KEYS_IN_STATE = re.compile(rb"\b(?:aead|enc|auth(?:-trunc)?|comp) \S+ 0x([0-9a-fA-F]+)")


def keys_here() -> list[bytes]:
    """Give the keys of this node's SAs, so that they can be looked for in what others print: they are kept nowhere."""
    try:
        said = answer(("ip", "xfrm", "state", "list"))
    except MissingError:
        return []
    return [bytes.fromhex(digits.decode()) for digits in KEYS_IN_STATE.findall(said) if len(digits) % 2 == 0]
