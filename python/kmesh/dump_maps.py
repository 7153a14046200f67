# SPDX-License-Identifier: Apache-2.0
"""The debug script: pods, sources, peers, services and counters from the pinned maps; no BCC, no daemon needed."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from kmesh import streams, unexpected
from kmesh.errors import OutputError
from kmesh.text import path
from kmesh_bpf import DEFAULT_PIN_ROOT, Address, KmeshBpfError, Maps, open_maps, privileges

BPFFS = Path("/sys/fs/bpf")
EPILOG = """\
--json prints a list, an object a pin root: pinRoot, incarnation, thresholds [bits], empty: not lowered,
pods [{address, flags}], sources [{address, ifindex, device}], devices [{ifindex, device}],
peers [{address, nodeId, nodeMark, spi, retired, incarnations, pair}], formers [{pair, spi}],
services [cidr], counters {name: packets}. Devices have the names of the network namespace that
this runs in; empty: there is none of this number.

exit status: 0 shown, 1 nothing pinned there or another version's layout
"""


def read(pin_root: Path) -> dict[str, Any]:
    """Give the content of one pin root's maps.

    Raises:
        UnsupportedError: nothing is pinned there.
        LayoutError: what is pinned is another version's.

    """
    maps = open_maps(pin_root)
    try:
        return {
            "pinRoot": str(pin_root),
            "incarnation": maps.identity(),
            "thresholds": list(maps.thresholds() or ()),
            "pods": [
                {"address": str(address), "flags": str(flags.name).lower().split("|")}
                for address, flags in sorted(maps.pods().items(), key=_by_address)
            ],
            "sources": [
                {"address": str(address), "ifindex": ifindex, "device": _name(ifindex)}
                for address, ifindex in sorted(maps.sources().items(), key=_by_address)
            ],
            "devices": [{"ifindex": ifindex, "device": _name(ifindex)} for ifindex in sorted(maps.pod_devices())],
            "peers": _peers(maps),
            "formers": [{"pair": f"{pair:016x}", "spi": spi} for pair, spi in sorted(maps.formers().items())],
            "services": sorted(str(cidr) for cidr in maps.services()),
            "counters": maps.counters(),
        }
    finally:
        maps.close()


def _peers(maps: Maps) -> list[dict[str, Any]]:
    return [
        {
            "address": str(address),
            "nodeId": entry.node_id,
            "nodeMark": entry.node_mark,
            "spi": entry.spi,
            "retired": entry.retired,
            "incarnations": f"{entry.incarnations:016x}",
            "pair": f"{entry.pair:016x}",
        }
        for address, entry in sorted(maps.peers().items(), key=_by_address)
    ]


def _by_address(item: tuple[Address, object]) -> tuple[int, bytes]:
    return item[0].version, item[0].packed


def _name(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""


def show(found: dict[str, Any], out: TextIO) -> None:
    """Print one pin root as tables."""
    print(f"{found['pinRoot']}  incarnation {found['incarnation'] or '(none)'}", file=out)
    if found["thresholds"]:
        local4, remote4, local6, remote6 = found["thresholds"]
        before = f"before they were lowered: hthresh4 {local4} {remote4} hthresh6 {local6} {remote6}"
        print(f"policy hash thresholds {before}", file=out)
    print(f"\n{'POD':<40}FLAGS", file=out)
    for pod in found["pods"]:
        print(f"{pod['address']:<40}{' '.join(pod['flags'])}", file=out)
    print(f"\n{'SOURCE':<40}{'DEVICE':<16}IFINDEX", file=out)
    for one in found["sources"]:
        print(f"{one['address']:<40}{one['device'] or '(gone)':<16}{one['ifindex']}", file=out)
    bound = (one["device"] or f"(gone: {one['ifindex']})" for one in found["devices"])
    print(f"\ndevices that carry no other source: {' '.join(bound) or '(none)'}", file=out)
    print(f"\n{'PEER':<40}{'NODE ID':<10}{'NODE MARK':<12}{'SPI':<11}{'RETIRED':<11}{'INCARNATIONS':<18}PAIR", file=out)
    for peer in found["peers"]:
        where = f"{peer['address']:<40}{peer['nodeId']:<10}{peer['nodeMark']:<#12x}"
        versions = f"{peer['spi']:<11}{peer['retired']:<11}"
        print(f"{where}{versions}{peer['incarnations']:<18}{peer['pair']}", file=out)
    print(f"\n{'FORMER PAIR':<40}SPI", file=out)
    for one in found["formers"]:
        print(f"{one['pair']:<40}{one['spi']}", file=out)
    print(f"\nservices: {' '.join(found['services']) or '(none)'}", file=out)
    print(f"\n{'COUNTER':<40}PACKETS", file=out)
    for name, packets in found["counters"].items():
        print(f"{name:<40}{packets}", file=out)


def main(argv: Sequence[str], out: TextIO, err: TextIO) -> int:
    """Show what was asked for; give the exit status.

    Raises:
        OutputError: ``out`` cannot be written.

    """
    parser = argparse.ArgumentParser(
        prog="dump_maps", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pin-root", type=path, default=DEFAULT_PIN_ROOT, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--all", action="store_true", help=f"every pin root of ours that stands directly in {BPFFS}")
    parser.add_argument("--json", action="store_true", help="for scripts")
    flags = parser.parse_args(argv)
    try:
        privileges.need(privileges.Capability.BPF)
        return _dump(flags, out, err)
    except OutputError:
        raise  # of the streams, which kmesh.streams knows
    except Exception as error:  # noqa: BLE001 # no traceback is what a user sees
        print(f"dump_maps: {unexpected.sentence(error)}", file=err)
    return 1


def _dump(flags: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    roots = sorted({folder.parent for folder in BPFFS.glob("*/maps-*")}) if flags.all else [flags.pin_root]
    found, status = [], 0
    for root in roots:
        try:
            found.append(read(root))
        except KmeshBpfError as error:
            print(f"dump_maps: {unexpected.sentence(error)}", file=err)
            status = 1
    if not roots:
        print(f"dump_maps: no pin root of ours is in {BPFFS}", file=err)
        status = 1
    if flags.json:
        print(json.dumps(found, indent=2), file=out)
    else:
        for one in found:
            show(one, out)
    return status


if __name__ == "__main__":
    sys.exit(streams.run("dump_maps", lambda out, errors: main(sys.argv[1:], out, errors)))
