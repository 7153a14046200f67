# SPDX-License-Identifier: Apache-2.0
"""A record as Prometheus text (exposition format 0.0.4). Pure.

By hand and not by prometheus_client: all values come from one frozen record, so its registries, locks and collectors
would be thrown away at each scrape; the format is a few lines.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from kmesh.telling.peers import Direction, PeerRecord
from kmesh.telling.record import BUCKETS, Record
from kmesh.telling.totals import Traffic
from kmesh_bpf import CONTRACT_VERSION, __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "kmesh_ipsec_"

Sample = tuple[str, float]
"""Labels as they stand between the braces, and the value."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: its name after the prefix, what it means in a line, and its samples."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Callable[[Record], Iterable[Sample]]
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """Name as Prometheus knows it."""
        return PREFIX + self.name


def labels(**values: str) -> str:
    """Give labels as they stand between the braces, escaped."""
    return ",".join(f'{name}="{_escape(value)}"' for name, value in values.items())


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def render(record: Record) -> str:
    """Give the page."""
    return "".join(line for family in FAMILIES for line in _lines(family, record))


def _lines(family: Family, record: Record) -> Iterator[str]:
    name = family.full_name
    help_text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {name} {help_text}\n# TYPE {name} {family.kind}\n"
    if family.kind == "histogram":
        yield from _histogram(name, record)
        return
    for inside, value in family.samples(record):
        yield f"{name}{{{inside}}} {value}\n" if inside else f"{name} {value}\n"


def _histogram(name: str, record: Record) -> Iterator[str]:
    numbers = list(accumulate(record.statistics.durations))
    for bound, number in zip((*map(str, BUCKETS), "+Inf"), numbers, strict=True):
        yield f'{name}_bucket{{le="{bound}"}} {number}\n'
    yield f"{name}_sum {record.statistics.seconds}\n{name}_count {numbers[-1]}\n"


def _one(value: Callable[[Record], float]) -> Callable[[Record], Iterable[Sample]]:
    return lambda record: (("", value(record)),)


def _by_reason(values: Callable[[Record], Mapping[str, int]]) -> Callable[[Record], Iterable[Sample]]:
    return lambda record: ((labels(reason=reason), number) for reason, number in sorted(values(record).items()))


def _by_peer(value: Callable[[PeerRecord], float]) -> Callable[[Record], Iterable[Sample]]:
    return lambda record: ((labels(peer=name), value(peer)) for name, peer in record.peers.items())


def _by_way(value: Callable[[Direction], float | None]) -> Callable[[Record], Iterable[Sample]]:
    """Give samples by peer and direction; what has no value has no sample."""

    def samples(record: Record) -> Iterator[Sample]:
        for name, peer in record.peers.items():
            for way, direction in peer.ways.items():
                number = value(direction)
                if number is not None:
                    yield labels(peer=name, direction=way), number

    return samples


def _both_ways(value: Callable[[Traffic], int]) -> Callable[[Record], Iterable[Sample]]:
    return _by_peer(lambda peer: sum(value(direction.traffic) for direction in peer.ways.values()))


def _passes(record: Record) -> Iterator[Sample]:
    return ((labels(result=result), number) for result, number in record.statistics.passes.items())


def _operations(record: Record) -> Iterator[Sample]:
    numbers = record.statistics.operations
    return ((labels(kind=kind, result=result), number) for (kind, result), number in sorted(numbers.items()))


def _problems(record: Record) -> Iterator[Sample]:
    yield labels(scope="cluster"), len(record.cluster_problems)
    yield labels(scope="plan"), len(record.plan_problems)


def _build(_: Record) -> Iterator[Sample]:
    yield labels(version=__version__, contract=str(CONTRACT_VERSION), python=platform.python_version()), 1


FAMILIES = (
    Family(
        "build_info", "gauge", "Always 1; the labels tell what runs.", _build, labels=("version", "contract", "python")
    ),
    Family("ready", "gauge", "1 when /readyz says ready, else 0.", _one(lambda record: int(not record.unready))),
    Family("peers_ready", "gauge", "Peers we can send to, encrypted.", _one(lambda record: record.sums.ready)),
    Family(
        "peers_expected",
        "gauge",
        "Other nodes that have published a KmeshNodeInfo or hold a managed pod.",
        _one(lambda record: len(record.peers)),
    ),
    Family(
        "peer_ready",
        "gauge",
        "1 when we can send to the peer, else 0.",
        _by_peer(lambda peer: int(peer.ready)),
        ("peer",),
    ),
    Family(
        "peer_announced_spi",
        "gauge",
        "SPI that the peer announces: the newest it can decrypt.",
        _by_peer(lambda peer: peer.announced),
        ("peer",),
    ),
    Family(
        "peer_spi",
        "gauge",
        "Newest SPI in the kernel for the peer, 0 where there is no SA.",
        _by_way(lambda way: way.newest),
        ("peer", "direction"),
    ),
    Family(
        "peer_sequence_use_ratio",
        "gauge",
        "Used part of the sequence numbers of an SA; at 1 it dies. Of several SAs the largest.",
        _by_way(lambda way: way.sequence_use),
        ("peer", "direction"),
    ),
    Family(
        "peer_bytes_total",
        "counter",
        "Bytes of the inner packets encrypted for (out) or decrypted from (in) the peer.",
        _by_way(lambda way: way.traffic.bytes),
        ("peer", "direction"),
    ),
    Family(
        "peer_packets_total",
        "counter",
        "Packets encrypted for (out) or decrypted from (in) the peer.",
        _by_way(lambda way: way.traffic.packets),
        ("peer", "direction"),
    ),
    Family(
        "peer_last_use_timestamp_seconds",
        "gauge",
        "When an SA of the peer was last used; absent until it is.",
        _by_way(lambda way: way.last_used or None),
        ("peer", "direction"),
    ),
    Family(
        "peer_replay_errors_total",
        "counter",
        "Packets of the peer dropped by replay protection: received before, as far back as the window reaches.",
        _both_ways(lambda traffic: traffic.replays),
        ("peer",),
    ),
    Family(
        "peer_integrity_failures_total",
        "counter",
        "Packets of the peer whose integrity check failed: another key, forged, or (ESN) older than the replay window.",
        _both_ways(lambda traffic: traffic.integrity_failures),
        ("peer",),
    ),
    Family(
        "xfrm_errors_total",
        "counter",
        "Packets that XFRM dropped in this network namespace, ours and others', by the kernel's reason.",
        _by_reason(lambda record: record.xfrm_errors),
        ("reason",),
    ),
    Family(
        "datapath_packets_total",
        "counter",
        "Packets by what the programs on TC did with them.",
        _by_reason(lambda record: record.counters),
        ("reason",),
    ),
    Family("key_spi", "gauge", "SPI of the key in force, 0 without a key.", _one(lambda record: record.key.spi)),
    Family(
        "key_announced_spi",
        "gauge",
        "SPI in our KmeshNodeInfo, 0 before the first.",
        _one(lambda record: record.key.announced),
    ),
    Family(
        "key_settled_spi",
        "gauge",
        "Newest SPI that everything was on: announced, and no SA of an older one left.",
        _one(lambda record: record.settled),
    ),
    Family(
        "key_age_seconds",
        "gauge",
        "How long this node has used the key in force; 0 without a key.",
        _one(lambda record: max(0.0, record.now - record.key_since) if record.key.spi else 0),
    ),
    Family(
        "key_refused",
        "gauge",
        "1 while what the Secret holds is refused and the former key stays in force, else 0.",
        _one(lambda record: int(bool(record.key.refused))),
    ),
    Family(
        "view_age_seconds",
        "gauge",
        "How long the cluster has not been seen; 0 while it is.",
        _one(lambda record: record.view_age),
    ),
    Family(
        "managed_pods",
        "gauge",
        "Managed pods: on this node (local) and on others (remote).",
        lambda record: (
            (labels(where="local"), record.pods_local),
            (labels(where="remote"), record.pods_remote),
        ),
        ("where",),
    ),
    Family(
        "problems",
        "gauge",
        "Problems that last: cluster objects that cannot be read, peers' claims that are ignored (plan).",
        _problems,
        ("scope",),
    ),
    Family(
        "passes_total",
        "counter",
        "Passes by result: converged, unfinished (another one followed at once), failed.",
        _passes,
        ("result",),
    ),
    Family("reconcile_duration_seconds", "histogram", "Duration of passes that were carried through.", lambda _: ()),
    Family(
        "operations_total",
        "counter",
        "Changes to kernel objects by kind, applied or failed.",
        _operations,
        ("kind", "result"),
    ),
    Family(
        "last_success_timestamp_seconds",
        "gauge",
        "When the kernel last held exactly what was planned; 0 before the first time.",
        _one(lambda record: record.succeeded),
    ),
)
