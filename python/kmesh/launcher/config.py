# SPDX-License-Identifier: Apache-2.0
"""What the daemon was asked to do: one frozen record, made from flags and nothing else."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NoReturn

from kmesh.launcher import upstream
from kmesh.telling.listening import HostPort
from kmesh.text import file_name, path, shown
from kmesh_bpf import (
    DEFAULT_PIN_ROOT,
    AttachMode,
    ConfigError,
    Network,
    Options,
    Settings,
    check_mark_mask,
    check_node_mark_mask,
)

MOUNTED_KEY = Path("/kmesh/kmesh-ipsec/ipSec")
"""Where the DaemonSet may mount the Secret's data key ipSec."""
DEFAULT_STATE_DIR = Path("/var/lib/kmesh-ipsec")
LARGEST_PORT, PORT_DIGITS = 65535, 5
LONGEST_NUMBER = 34
"""Characters of a number in a flag: 32 binary digits and what stands before them."""

HELP_EPILOG = """\
examples:
  kmesh-daemon --mode=dual-engine --enable-bypass=false --enable-ipsec=true
  kmesh-daemon --enable-ipsec=true --kubeconfig ./admin.conf --context lab
  kmesh-daemon --enable-ipsec=true --manifests ./cluster               # a folder instead of an API server
  kmesh-daemon --enable-ipsec=true --manifests ./cluster --dry-run     # print what it would do
  kmesh-daemon uninstall --manifests ./cluster                         # remove every kernel object of ours
  kmesh-daemon boot-guard                                              # at boot: drop what could leave in clear

BOOL is true or false; a flag without it is true.

exit status: 0 stopped as asked, 1 failed, 2 refused (a flag or value that cannot be used)
"""


@dataclass(frozen=True, slots=True)
class Config:
    """The daemon's settings.

    ``command`` is ``run``, ``uninstall``, ``boot-guard`` or ``version``; ``manifests`` the folder that is the cluster,
    None: an API server, which ``kubeconfig`` and ``context`` name, else it is found; ``key_file`` None: the key comes
    from the Secret; ``node`` is this node's name; ``state_dir``: what guards its next boot is kept there. ``health``:
    where health and metrics are served, None: nowhere. ``max_view_age``: seconds that the cluster may be out of sight
    before the node counts as not ready. ``ignored``: flags of Go Kmesh that were given and have no meaning here.
    """

    command: str
    enable_ipsec: bool
    manifests: Path | None
    kubeconfig: str | None
    context: str | None
    key_file: Path | None
    node: str
    pin_root: Path
    state_dir: Path
    settings: Settings
    options: Options
    services: tuple[Network, ...]
    attach_mode: AttachMode
    dry_run: bool
    health: HostPort | None
    max_view_age: float
    log_level: str
    log_format: str
    ignored: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


def _boolean(text: str) -> bool:
    if text.lower() not in upstream.TRUE | upstream.FALSE:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in upstream.TRUE


def _command(text: str) -> str:
    if text in upstream.NOT_PROVIDED:
        raise argparse.ArgumentTypeError(f"{text!r} is not provided by this project: {upstream.NOT_PROVIDED[text]}")
    return text


def _number(text: str) -> int:
    try:
        number = int(text, 0) if len(text) <= LONGEST_NUMBER else None
    except ValueError:
        number = None
    if number is None:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number of seconds above 0")
    return seconds


def _host_port(text: str) -> HostPort | None:
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or len(port) > PORT_DIGITS or int(port) > LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not HOST:PORT, like :15020 or [::1]:15020")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host) if host else None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{host!r} in {text!r} is no IP address") from error
    if address is not None and bracketed != (address.version == 6):
        raise argparse.ArgumentTypeError(f"{text!r}: brackets belong around an IPv6 address, and around nothing else")
    return HostPort(address, int(port))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kmesh-daemon",
        description="Kmesh dual-engine launcher: encrypts the traffic between managed pods of different nodes.",
        epilog=HELP_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "command",
        nargs="?",
        type=_command,
        choices=("run", "uninstall", "boot-guard", "version", "help"),
        default="run",
        help="default: run",
    )
    add("--mode", default="dual-engine", help="dual-engine, the only mode of this project (default)")
    boolean: dict[str, Any] = {"type": _boolean, "nargs": "?", "const": True, "metavar": "BOOL"}
    add("--enable-bypass", **boolean, default=False, help="only false is provided (default)")
    add("--enable-ipsec", **boolean, default=False, help="encrypt between nodes (default: false)")
    add("--manifests", type=path, metavar="DIR", help="the cluster: a folder of Kubernetes manifests")
    add(
        "--kubeconfig",
        type=file_name,
        metavar="FILE",
        help="the cluster: the API server of this file (default: the pod's, else kubectl's)",
    )
    add("--context", metavar="NAME", help="a context of the kubeconfig (default: its current one)")
    add(
        "--key-file",
        type=path,
        metavar="FILE",
        help=f"take the key from a mounted file (default, without --manifests: {MOUNTED_KEY} if it is there at start)",
    )
    strictness = parser.add_mutually_exclusive_group()
    strictness.add_argument(
        "--strict",
        dest="strict",
        action="store_true",
        default=True,
        help="between managed pods nothing passes in clear, ever (default)",
    )
    strictness.add_argument(
        "--permissive",
        dest="strict",
        action="store_false",
        help="towards managed pods of nodes that are not ready, traffic passes in clear, counted",
    )
    add(
        "--uplink",
        action="append",
        default=[],
        metavar="DEV",
        help="a device that is no pod's (several; none is needed)",
    )
    pins = parser.add_mutually_exclusive_group()
    pins.add_argument(
        "--pin-root", type=path, default=DEFAULT_PIN_ROOT, metavar="DIR", help="bpffs folder (default: %(default)s)"
    )
    pins.add_argument(
        "--bpf-fs-path", type=path, metavar="DIR", help=f"where bpffs is: pins are in {DEFAULT_PIN_ROOT.name} below it"
    )
    add(
        "--state-dir",
        type=path,
        default=DEFAULT_STATE_DIR,
        metavar="DIR",
        help="what guards the node's next boot is kept there (default: %(default)s)",
    )
    add("--service-cidr", action="append", default=[], metavar="CIDR", help="the cluster's Service CIDR (several)")
    add(
        "--node-mark-mask",
        type=_number,
        default=Options().node_mark_mask,
        metavar="MASK",
        help=f"mark bits for node ids (default: {Options().node_mark_mask:#x})",
    )
    add(
        "--mark-mask",
        type=_number,
        default=Options().mark_mask,
        metavar="MASK",
        help=f"bits of the marks 0xe0 and 0xd0 that are ours (default: {Options().mark_mask:#x})",
    )
    add(
        "--replay-window",
        type=_number,
        default=Options().replay_window,
        metavar="PACKETS",
        help="anti-replay window, at most 4096; 0 turns ESN and replay protection off (default: %(default)s)",
    )
    add(
        "--max-exact-addresses",
        type=_number,
        default=Options().max_exact,
        metavar="ADDRESSES",
        help="managed addresses of other nodes selected one by one; above it by pod CIDR (default: %(default)s)",
    )
    add("--tc-attach", choices=("auto", "tcx", "clsact"), default="auto", help="how programs attach (default: auto)")
    add(
        "--health-address",
        type=_host_port,
        default=HostPort(None, 15020),
        metavar="HOST:PORT",
        help="where /healthz, /readyz and /status/metric are served (default: %(default)s, empty: nowhere)",
    )
    add(
        "--max-view-age",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="without sight of the cluster for longer, /readyz says no; encryption goes on (default: %(default)g)",
    )
    add("--dry-run", action="store_true", help="print the operations as commands, change nothing, exit")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    add("--log-format", choices=("text", "json"), default="text")
    theirs = parser.add_argument_group("flags of Go Kmesh", "taken with one warning: they have no meaning here")
    for flag in upstream.IGNORED:
        takes: dict[str, Any] = boolean if flag.metavar == "BOOL" else {"metavar": flag.metavar}
        theirs.add_argument(flag.name, **takes, default=argparse.SUPPRESS, help=f"(there: {flag.about})")
    return parser


def parse(argv: Sequence[str], node_name: str | None, hostname: str) -> Config:
    """Make the settings from the arguments; ``node_name`` is the environment's NODE_NAME, else ``hostname`` counts.

    Raises:
        ConfigError: a flag is unknown, cannot be used, or asks for what this project does not provide.

    """
    parser = _parser()
    booleans = frozenset(
        name for action in parser._actions if action.type is _boolean for name in action.option_strings
    )
    flags = parser.parse_args(upstream.spelled_out(argv, booleans))
    if flags.command == "help":
        parser.parse_args(["--help"])
    if flags.mode != "dual-engine":
        raise ConfigError(f"--mode={flags.mode} is not provided by this project; use --mode=dual-engine")
    if flags.manifests and (flags.kubeconfig or flags.context):
        raise ConfigError("--manifests and --kubeconfig or --context name two clusters; give one")
    if flags.enable_bypass:
        raise ConfigError("--enable-bypass=true is not provided by this project; use --enable-bypass=false")
    if not 0 <= flags.replay_window <= Options().replay_window:
        raise ConfigError(f"--replay-window={flags.replay_window} is not between 0 and {Options().replay_window}")
    if flags.max_exact_addresses < 0:
        raise ConfigError(f"--max-exact-addresses={flags.max_exact_addresses} is below 0")
    node_mark_mask, mark_mask = check_node_mark_mask(flags.node_mark_mask), check_mark_mask(flags.mark_mask)
    return Config(
        command=flags.command,
        enable_ipsec=flags.enable_ipsec,
        manifests=flags.manifests,
        kubeconfig=flags.kubeconfig,
        context=flags.context,
        key_file=flags.key_file,
        node=node_name or hostname.strip().lower(),  # as kubelets register (k8s.io/component-helpers: GetHostname)
        pin_root=flags.bpf_fs_path / DEFAULT_PIN_ROOT.name if flags.bpf_fs_path else flags.pin_root,
        state_dir=flags.state_dir,
        settings=Settings(strict=flags.strict, node_mark_mask=node_mark_mask, mark_mask=mark_mask),
        options=Options(
            node_mark_mask=node_mark_mask,
            mark_mask=mark_mask,
            strict=flags.strict,
            max_exact=flags.max_exact_addresses,
            replay_window=flags.replay_window,
            uplinks=tuple(flags.uplink),
        ),
        services=tuple(_cidr(text) for text in flags.service_cidr),
        attach_mode=flags.tc_attach,
        dry_run=flags.dry_run,
        health=flags.health_address,
        max_view_age=flags.max_view_age,
        log_level=flags.log_level,
        log_format=flags.log_format,
        ignored=upstream.ignored(vars(flags)),
    )


def _cidr(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ConfigError(f"--service-cidr={text}: {error}") from error
