# SPDX-License-Identifier: Apache-2.0
"""Clusters for the page to show: three nodes during a replacement, and five hundred with a few that are not well."""

from dataclasses import replace

from kmesh.cluster.snapshot import MODE_LABEL
from kmesh.cluster.status import Drop, PeerStatus

from tests.unit.cluster import kube
from tests.unit.kmeshctl.test_status import NOW, OURS, WELL, Source

KEY = kube.secret(kube.entry(2, bytes(range(1, 37))), [kube.entry(1)])
POD = kube.pod("web", 1, 10, labels={MODE_LABEL: "Kmesh"})
OTHER = kube.pod("cart", 2, 11, labels={MODE_LABEL: "Kmesh"})


def numbered(index: int, spi: int):
    """Give Node and KmeshNodeInfo of a number that needs two bytes."""
    node, info = kube.node(1), kube.node_info(1, spi, **OURS)
    name, address = f"node-{index:03}", f"10.20.{index // 250}.{index % 250 + 1}"
    node["metadata"] |= {"name": name, "uid": name}
    node["status"]["addresses"] = [{"type": "InternalIP", "address": address}]
    node["spec"] = {"podCIDRs": [f"10.{100 + index // 250}.{index % 250}.0/24"]}
    info["metadata"]["name"] = name
    info["spec"] |= {"addresses": [address], "podCIDRS": node["spec"]["podCIDRs"]}
    return name, node, info


def three() -> Source:
    """n1 is done, n2 is behind with one peer and cannot send to n3, which has not reported for long."""
    nodes = [kube.node(one) for one in (1, 2, 3)]
    infos = [kube.node_info(1, 2, **OURS), kube.node_info(2, 2, **OURS), kube.node_info(3, 1, **OURS)]
    done = replace(WELL, spi=2, newest_spi=2, peers_ready=2, peers_expected=2, peers_on_newest=2, peers=())
    late = replace(
        done,
        node="n2",
        ready=False,
        reasons=("add SA 10.10.0.2 -> 10.10.0.3 spi 0x00000002: Cannot allocate memory (ENOMEM)",),
        peers_ready=1,
        peers_on_newest=0,
        replacing_since=NOW - 40,
        counters={"dropped_by_guard": 7},
        last_drop=Drop("dropped_by_guard", NOW - 30),
        peers=(PeerStatus("n1", True, 2, 1, 0.0), PeerStatus("n3", False, 1, 0, 0.0)),
    )
    gone = replace(done, node="n3", reported_at=NOW - 900)
    return Source((*nodes, *infos, KEY, POD, OTHER), (done, late, gone))


def many(count: int = 500) -> Source:
    """All are well but three: one is not ready for two others, one has not reported."""
    manifests, reports = [KEY], []
    for index in range(count):
        name, node, info = numbered(index, 2)
        manifests += [node, info]
        report = replace(WELL, node=name, spi=2, newest_spi=2, peers=())
        if index == 41:
            far = (PeerStatus("node-007", False, 0, 0, 0.0), PeerStatus("node-300", False, 0, 0, 0.0))
            report = replace(report, ready=False, reasons=("the wire is cut",), peers=far)
        reports.append(replace(report, reported_at=NOW - 900) if index == 9 else report)
    return Source(tuple(manifests), tuple(reports))
