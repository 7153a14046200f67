# SPDX-License-Identifier: Apache-2.0
"""What the API server says, for a bug report; no key is read that is not meant to be looked for and hidden."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import fields, is_dataclass
from ipaddress import ip_network
from itertools import combinations, product
from typing import Any

from kmesh.cluster import secret
from kmesh.cluster.objects import NAMESPACE, ClusterObjects
from kmesh.cluster.snapshot import pod_claims
from kmesh.cluster.source import ClusterSource, read_whole
from kmesh.cluster.status import NodeStatus
from kmesh.errors import ClusterError
from kmesh.kmeshctl import bundle, explain, status, traffic
from kmesh.kmeshctl.health import examine, read_reports
from kmesh_bpf import ConfigError

MOST_PAIRS = 20
"""Pairs of nodes for which explain is asked."""
RAW = ("KmeshNodeInfo", "DaemonSet", "Event")
"""Kinds whose objects in the namespace of Kmesh are given as the server has them, but for what nobody needs."""
LOG_LINES = 20_000
"""Of each daemon's log, the last ones."""
NO_SERVER = "a folder of manifests has none; there is no API server"


def collect(archive: bundle.Archive, source: ClusterSource, now: float) -> None:
    """Add what the cluster says.

    Raises:
        ClusterError: it says nothing.

    """
    objects = read_whole(source)
    archive.materials += materials(objects.secret)
    archive.add("cluster/objects.json", lambda: json.dumps(plain(objects), indent=1))
    archive.add("cluster/secret.txt", lambda: about_key(objects.secret))
    archive.add("cluster/leases.json", lambda: json.dumps([trimmed(one) for one in source.statuses()], indent=1))
    archive.add("cluster/status.txt", lambda: status.render(status.look(source, now), "wide"))
    archive.add("cluster/status.json", lambda: status.render(status.look(source, now), "json"))
    archive.add("cluster/explain.txt", lambda: explained(objects, source, now))
    raw = getattr(source, "raw", None)
    for kind in RAW:
        archive.add(f"cluster/{kind.lower()}s.json", _raw(raw, kind))
    pods = getattr(source, "daemon_pods", None)
    if pods is None:
        archive.missing["logs/"] = NO_SERVER
        return
    found: list[Mapping[str, Any]] = []

    def daemons() -> str:
        found.extend(pods())
        return json.dumps([trimmed(one) for one in found], indent=1)

    archive.add("cluster/daemon-pods.json", daemons)
    for pod in found:
        name, again = pod["metadata"]["name"], restarted(pod)
        for previous in (False, *([True] if again else [])):
            file = f"logs/{name}{'.previous' if previous else ''}.log"
            archive.add(file, lambda name=name, previous=previous: source.log(name, LOG_LINES, previous))  # type: ignore[attr-defined,misc]
    if not found:
        archive.missing["logs/"] = archive.missing.get(
            "cluster/daemon-pods.json", f"no pod of a daemon is in {NAMESPACE}"
        )


def _raw(raw: Callable[[str], list[dict[str, Any]]] | None, kind: str) -> Callable[[], str]:
    def read() -> str:
        if raw is None:
            raise ClusterError(NO_SERVER)
        return json.dumps([trimmed(one) for one in raw(kind)], indent=1)

    return read


def restarted(pod: Mapping[str, Any]) -> bool:
    """Tell whether a pod's container has run before, so that there is a log of that."""
    states = (pod.get("status") or {}).get("containerStatuses") or []
    return any(isinstance(one, Mapping) and one.get("restartCount") for one in states)


def materials(manifest: Mapping[str, Any] | None) -> list[bytes]:
    """Give the keys that the Secret holds, or held, as far as it can be read, and its values as they are."""
    found: list[bytes] = []
    if manifest is None:
        return found
    with suppress(ConfigError):
        found += [key.reveal() for key in secret.parse_keys(manifest).keys.values()]
    data = manifest.get("data")
    for value in data.values() if isinstance(data, Mapping) else ():
        if isinstance(value, str):
            found.append(value.encode())
            with suppress(ValueError):
                found.append(base64.b64decode(value))
    return found


def about_key(manifest: Mapping[str, Any] | None) -> str:
    """Say which versions of the key there are, and nothing of what they are."""
    if manifest is None or not secret.holds_key(manifest):
        return "the cluster holds no key\n"
    try:
        keyring = secret.parse_keys(manifest)
    except ConfigError as error:
        return f"{error}\n"
    return f"versions (SPI): {', '.join(map(str, sorted(keyring.keys)))}; in force: {keyring.current}\n"


def trimmed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Give a manifest without the server's bookkeeping, and what stands in environments: it may be a password."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, Mapping):
            kept = {one: cleaned(inner) for one, inner in value.items() if one != "managedFields"}
            if "env" in kept and isinstance(kept["env"], list):
                kept["env"] = [_without_value(one) for one in kept["env"]]
            if isinstance(notes := kept.get("annotations"), dict):
                notes.pop("kubectl.kubernetes.io/last-applied-configuration", None)  # the whole of it once more
            return kept
        return [cleaned(one) for one in value] if isinstance(value, list) else value

    return dict(cleaned(manifest))


def _without_value(variable: Any) -> Any:
    return {**variable, "value": "(left out)"} if isinstance(variable, Mapping) and "value" in variable else variable


def plain(value: Any) -> Any:
    """Give objects as plain values; the Secret's manifest is not among them."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = (one.name for one in fields(value) if one.repr)
        return {name: plain(getattr(value, name)) for name in shown}
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    if isinstance(value, Set):
        return sorted(map(plain, value))
    return [plain(one) for one in value] if isinstance(value, Sequence) else str(value)


def explained(objects: ClusterObjects, source: ClusterSource, now: float) -> str:
    """Answer for a pair of managed pods of each two nodes with something wrong between them; else of any two."""
    reports, _ = read_reports(source.statuses())
    services = tuple({ip_network(cidr) for report in reports.values() for cidr in report.services})
    cluster = traffic.Cluster(objects, reports, services, now)
    found = [
        explain.render(traffic.explain(cluster, pair, "default")) for pair in pairs(objects, reports, cluster, now)
    ]
    return "\n".join(found) or "there are no two nodes with managed pods\n"


def pairs(
    objects: ClusterObjects, reports: Mapping[str, NodeStatus], cluster: traffic.Cluster, now: float
) -> Iterator[tuple[str, str]]:
    """Give pairs of pods to ask about: of nodes that do not reach each other, or that something is said of."""
    pod_of: dict[str, str] = {}
    for pod in pod_claims(objects)[0]:
        pod_of.setdefault(pod.node, pod.name)
    apart = list(bundle.pairs_apart(reports, lambda name: cluster.fresh(name) is not None, MOST_PAIRS))
    ill = [one.node for one in examine(objects, (), now).findings if one.node in pod_of and one.node not in reports]
    apart += [pair for pair in product(ill, pod_of) if pair[0] != pair[1]]
    known = [(a, b) for a, b in apart if a in pod_of and b in pod_of] or list(combinations(sorted(pod_of), 2))[:1]
    once: dict[frozenset[str], tuple[str, str]] = {}
    for pair in known:
        once.setdefault(frozenset(pair), pair)
    for a, b in list(once.values())[:MOST_PAIRS]:
        yield pod_of[a], pod_of[b]
