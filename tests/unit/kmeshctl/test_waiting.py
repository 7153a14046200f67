# SPDX-License-Identifier: Apache-2.0
"""Who waits for a new key is told how far the nodes are, and when all use it."""

import io
from dataclasses import replace

import pytest
import yaml
from kmesh.cluster.objects import parse
from kmesh.cluster.status import to_lease
from kmesh.kmeshctl import cli, secrets
from kmesh.kmeshctl.waiting import progress

from tests.unit.cluster import kube
from tests.unit.kmeshctl.test_status import NOW, OURS, WELL

INFOS = tuple(parse(kube.node_info(number, 2, **OURS)) for number in (1, 2))
DONE = {name: replace(WELL, node=name, spi=2, newest_spi=2) for name in ("n1", "n2")}


def said(**reports):
    return str(progress(INFOS, DONE | reports, 2, NOW))


def test_all_nodes_are_waited_for_and_told_of_by_what_they_lack():
    assert said() == "all 2 nodes send with SPI 2"
    assert progress(INFOS, DONE, 2, NOW).over
    late = replace(DONE["n2"], peers_on_newest=0)
    assert said(n2=late) == "1 of 2 nodes send with SPI 2; not with all peers yet: n2"
    assert said(n2=replace(late, spi=1), n3=replace(late, node="n3", spi=1)) == (
        "1 of 3 nodes send with SPI 2; not announced yet: n2, n3"
    )
    assert said(n2=replace(DONE["n2"], reported_at=NOW - 400)) == "1 of 2 nodes send with SPI 2; no report: n2"


def test_a_node_of_go_kmesh_is_not_waited_for_and_without_any_there_is_nothing_to_wait_for():
    assert progress((*INFOS, parse(kube.node_info(3))), DONE, 2, NOW).over
    nobody = progress([parse(kube.node_info(3))], {}, 2, NOW)
    assert (str(nobody), nobody.over) == ("no daemon of this project reports", False)


@pytest.fixture
def create(tmp_path, monkeypatch):
    """Run ``secret create --wait`` on a cluster whose nodes move on each time somebody looks."""
    steps = []

    def sleep(_):
        if steps:
            put(*steps.pop(0))

    def put(*reports):
        for report in reports:
            path = tmp_path / f"lease-kmesh-ipsec-{report.node}.yaml"
            path.write_text(yaml.safe_dump(to_lease(report)))

    def run(*argv, then=()):
        steps.extend(then)
        out, errors = io.StringIO(), io.StringIO()
        status = cli.main(["secret", "create", *argv, "--manifests", str(tmp_path)], io.StringIO(), out, errors)
        return status, out.getvalue().splitlines(), errors.getvalue().splitlines()

    monkeypatch.setattr(secrets.time, "sleep", sleep)
    monkeypatch.setattr(secrets.time, "time", lambda: NOW)
    for number in (1, 2):
        (tmp_path / f"kmeshnodeinfo-n{number}.yaml").write_text(yaml.safe_dump(kube.node_info(number, 1, **OURS)))
    put(replace(WELL, node="n1"), replace(WELL, node="n2"))
    return run


def test_progress_is_told_until_all_use_it(create):
    both = tuple(DONE.values())
    status, out, errors = create("--wait", then=[both[:1], (), both])
    assert (status, out) == (0, ["key stored: SPI 2, rfc4106(gcm(aes))", "all 2 nodes send with SPI 2"])
    assert errors == [
        "kmeshctl: 0 of 2 nodes send with SPI 2; not announced yet: n1, n2",
        "kmeshctl: 1 of 2 nodes send with SPI 2; not announced yet: n2",
    ]


def test_who_has_waited_for_long_enough_is_told_what_is_missing(create):
    status, out, errors = create("--wait=1s")
    assert (status, out) == (1, ["key stored: SPI 2, rfc4106(gcm(aes))"])
    assert errors[-1] == (
        "kmeshctl: after 1s 0 of 2 nodes send with SPI 2; not announced yet: n1, n2; kmeshctl status tells more"
    )
