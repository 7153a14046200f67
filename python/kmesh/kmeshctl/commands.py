# SPDX-License-Identifier: Apache-2.0
"""What may be said to each command, and its help; what it does is in a module of its own, read when it is needed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from kmesh.kmeshctl.output import add_form, duration
from kmesh.text import path

if TYPE_CHECKING:
    from kmesh_bpf import Network

FATES = ("encrypted", "clear", "dropped", "unreadable")
"""Of packets, as monitor shows them: the values of PacketFate, whose module brings the contract with the programs."""
MOST_SAMPLED = 1_000_000
SHELLS = ("bash", "zsh", "fish")
ENDS = "POD, NAMESPACE/POD, svc/NAME, node/NAME or an address"
"""What explain takes for an end."""
WATCH_SECONDS = 2.0
LOOPBACK, PORT = "127.0.0.1", 8765
"""Where the dashboard is."""
STATUS_EPILOG = """\
examples:
  kmeshctl status
  kmeshctl status -o wide
  kmeshctl status --problems         # no table
  kmeshctl status --watch            # every 2 seconds, until Ctrl-C
  kmeshctl status -o json

READY unknown: there is no report of that node, or it is too old; nodes of Go Kmesh never report. DROPS: packets
that the programs dropped because they would have left, or had arrived, in clear. AGE: of the node's report.
A table has 80 columns at most: where there is no room, VERSION, SEQ USE and SPI are left out; -o wide has everything.

exit status: 0 all is as it should be, 1 something is not (said under the table) or failed, 2 refused
"""
EXPLAIN_EPILOG = """\
examples:
  kmeshctl explain web api                 # two pods of the default namespace
  kmeshctl explain shop/web backend/api
  kmeshctl explain shop/web svc/shop/cart  # an answer for each endpoint of the Service
  kmeshctl explain shop/web 10.244.2.10    # an address: a pod's, a node's or a Service's
  kmeshctl explain pod/web node/n2
  kmeshctl explain web 10.96.0.10 --service-cidr 10.96.0.0/12
  kmeshctl explain web api -o json

Service CIDRs are those that the daemons report, and those given.

exit status: 0 encrypted both ways, 1 not so (the answer says why) or failed, 2 refused
"""
BUNDLE_EPILOG = """\
examples:
  kmeshctl bundle                          # kmesh-bundle-DATE.tar.gz
  kmeshctl bundle --file report.tar.gz
  kmeshctl bundle --node                   # of this node too, though no maps of ours are pinned here

From anywhere: what the API server says (status, explain for pairs of nodes that do not reach each other, objects,
Leases, Events, the daemons' logs). On a node, as root: what its kernel says, too (XFRM without keys, nft, tc, BPF).
No key is in it: the Secret is left out but for its versions, and whatever looks like a key or a token is hidden;
addresses and names of your cluster are in it. What could not be had is named in what-is-missing.txt.

exit status: 0 written, 1 failed, 2 refused
"""
DASHBOARD_EPILOG = f"""\
examples:
  kmeshctl dashboard                       # http://{LOOPBACK}:{PORT}/, until Ctrl-C
  kmeshctl dashboard --port 0              # any port that is free
  kmeshctl dashboard -n shop               # where pods are that are named without a namespace

Only this machine's loopback is served; from another one: ssh -L {PORT}:{LOOPBACK}:{PORT} HOST. Whoever has an
account on this machine can see it: names and addresses of the cluster, no key.
"""
COMPLETION_EPILOG = """\
examples:
  source <(kmeshctl completion bash)                                       # this shell only
  kmeshctl completion bash > /etc/bash_completion.d/kmeshctl
  kmeshctl completion zsh > "${fpath[1]}/_kmeshctl"
  kmeshctl completion fish > ~/.config/fish/completions/kmeshctl.fish
"""
MAN_EPILOG = """\
examples:
  kmeshctl man > /usr/local/share/man/man1/kmeshctl.1
  kmeshctl man | man -l -
"""

MONITOR_EPILOG = """\
examples:
  kmeshctl monitor                         # on a node, as root: every packet
  kmeshctl monitor --only dropped          # what is dropped, and why
  kmeshctl monitor --sample 1000           # one packet of 1000, where there are many
  kmeshctl monitor --for 10s -o json       # ten seconds, a line of JSON for each row

Shows what the programs of this node decide on packets of managed pods: encrypted, in clear, or dropped, and why. A
packet that is encrypted is seen where it leaves its pod and, on the other node, where it arrives. Pods have their names
where the cluster can be asked. Nothing is watched while this does not run; docs/benchmarks.md has its cost.

exit status: 0 ended, 1 failed, 2 refused
"""
DOCTOR_EPILOG = """\
examples:
  kmeshctl doctor                  # on the node, as root
  kmeshctl doctor -o json

Works without an API server, and without a daemon: what the kernel can do is tried in a network namespace of its own;
nothing of the node is changed. A daemon's own findings are in kmeshctl status.

exit status: 0 nothing, or notes only; 1 errors, which cost packets, or it failed; 2 refused; 3 warnings
"""


def register(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add all commands but ``secret``, ``version`` and ``help`` to kmeshctl's."""
    for add in (_status, _explain, _doctor, _monitor, _bundle, _dashboard, _completion, _man):
        add(commands, shared)


def _status(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "status",
        help="show every node, and what is not as it should be",
        parents=[shared],
        description="Shows every node of the cluster, and under the table what is not as it should be.",
        epilog=STATUS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_form(parser)
    parser.add_argument(
        "--problems", action="store_true", help="only what is not as it should be, a line each; nothing: all is"
    )
    parser.add_argument(
        "-w",
        "--watch",
        type=_seconds,
        nargs="?",
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"show it again and again (default: every {WATCH_SECONDS:g})",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 3600")
    return seconds


def _explain(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "explain",
        help="say whether the traffic between two pods is encrypted, and why",
        parents=[shared],
        description="Says whether the traffic between two ends is encrypted now, each way, and why or why not.",
        epilog=EXPLAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ends", nargs=2, metavar="POD", help=f"{ENDS} (also svc/NAMESPACE/NAME)")
    parser.add_argument(
        "--service-cidr", action="append", default=[], type=_cidr, metavar="CIDR", help="a Service CIDR (several)"
    )
    add_form(parser)


def _cidr(text: str) -> Network:
    from ipaddress import ip_network  # noqa: PLC0415 # of no other command's use

    try:
        return ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _bundle(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "bundle",
        help="collect what a bug report needs into one archive, without keys",
        parents=[shared],
        description="Collects what a bug report needs into one archive, without keys.",
        epilog=BUNDLE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--file", type=path, metavar="FILE", help="default: kmesh-bundle-DATE.tar.gz, here")
    parser.add_argument(
        "--node",
        action="store_true",
        help="what this machine's kernel says, too (default: where maps of ours are pinned)",
    )


def _dashboard(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "dashboard",
        help="show the cluster in a browser",
        parents=[shared],
        description="Serves a page that shows what status and explain say, on loopback, until interrupted.",
        epilog=DASHBOARD_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=_port, default=PORT, metavar="PORT", help="default: %(default)s; 0: any")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give one from 0 to 65535")
    return int(text)


def _completion(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands and flags",
        parents=[shared],
        description="Prints a script that makes a shell complete kmeshctl's commands, flags and their values.",
        epilog=COMPLETION_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell to complete in")


def _man(commands: Any, shared: argparse.ArgumentParser) -> None:
    commands.add_parser(
        "man",
        help="print the manual page",
        parents=[shared],
        description="Prints the manual page, for man(1): what --help says of each command, in one.",
        epilog=MAN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _monitor(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "monitor",
        help="show what this node's programs decide on packets, as it happens",
        parents=[shared],
        description="Shows what this node's programs decide on packets, as it happens, by pair of pods.",
        epilog=MONITOR_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pin-root", type=path, metavar="DIR", help="default: the daemon's own default")
    parser.add_argument("--only", choices=FATES, help="only packets of this fate")
    parser.add_argument(
        "--sample", type=_one_of, default=1, metavar="N", help="one packet of N, counted N times (default: every one)"
    )
    parser.add_argument(
        "--interval", type=_length, default=1.0, metavar="TIME", help="how often to show what has come (default: 1s)"
    )
    parser.add_argument("--for", dest="limit", type=_length, metavar="TIME", help="end after this time (30s, 5m)")
    add_form(parser)


def _one_of(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= MOST_SAMPLED:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {MOST_SAMPLED}")
    return int(text)


def _length(text: str) -> float:
    try:
        return duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; write 10s or 5m") from error


def _doctor(commands: Any, _: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what this node lacks for encryption, or has in its way",
        description="Examines the node that it runs on: what its kernel lacks, and what others have set up in the way.",
        epilog=DOCTOR_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_form(parser)
    parser.add_argument("--pin-root", type=path, metavar="DIR", help="as the daemon's (default: as it does)")
    parser.add_argument("--mark-mask", type=_mask, metavar="MASK", help="as the daemon's (default: 0xff)")


def _mask(text: str) -> int:
    from kmesh_bpf import ConfigError, check_mark_mask  # noqa: PLC0415 # of no other command's use

    try:
        return check_mark_mask(int(text, 0))
    except (ValueError, ConfigError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
