# SPDX-License-Identifier: Apache-2.0
"""What a daemon finds wrong is said by all that an operator asks: /readyz, the report, status, explain, the Events."""

import io

import pytest
import yaml
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.source import read_whole
from kmesh.cluster.status import from_lease
from kmesh.kmeshctl import explain
from kmesh.kmeshctl.arguments import parser
from kmesh.kmeshctl.health import examine

from tests.unit.cluster import kube
from tests.unit.launcher.standin import Node

SENTENCE = "uplink nosuch: there is no such device; name one that is there, or none"
OURS = {"kmesh.net/ipsec-replay-window": "4096", "kmesh.net/ipsec-node-traffic": "true"}


class Asked:
    """The cluster's folder, with the reports that the node sent."""

    def __init__(self, node: Node):
        self.folder, self.node = FolderCluster(node.folder, node.clock), node

    def read(self):
        return self.folder.read()

    def statuses(self):
        return tuple(self.node.reported[-1:])


@pytest.fixture
def asked(node: Node) -> Asked:
    for index in (2, 3):
        node.put(kube.node(index))
        node.put(kube.node_info(index, **OURS))
    return Asked(node)


def findings(asked: Asked) -> list[str]:
    found = examine(read_whole(asked), asked.statuses(), asked.node.clock.now).findings
    return [finding.sentence for finding in found if finding.node == "n1"]


def explained(asked: Asked) -> tuple[int, dict]:
    out = io.StringIO()
    flags = parser().parse_args(["explain", "web1", "web2", "-o", "yaml"])
    return explain.run(flags, asked, out, asked.node.clock), yaml.safe_load(out.getvalue())


def test_an_uplink_that_is_not_there_is_named_by_all_of_them(node: Node, asked: Asked):
    node.restart("--uplink=nosuch")
    node.key(1)
    node.steps(30)
    assert node.ready() == (503, [SENTENCE])
    assert (node.report()["ready"], node.report()["reasons"]) == (False, [SENTENCE])
    assert findings(asked) == [f"not ready: {SENTENCE}"]
    code, answer = explained(asked)
    assert code == 1
    assert {way["verdict"] for way in answer["ways"]} == {"unknown"}
    assert all(SENTENCE in way["reason"] for way in answer["ways"])
    assert f"n1 is not ready; {SENTENCE}" in answer["notes"]
    event = node.told[-1]
    assert (event["reason"], event["message"]) == ("EncryptionNotReady", SENTENCE)


def test_where_all_is_well_all_of_them_say_so(node: Node, asked: Asked):
    node.key(1)
    node.steps(30)
    assert node.ready() == (200, [])
    assert findings(asked) == []
    code, answer = explained(asked)
    assert (code, answer["encrypted"]) == (0, True)
    assert node.reasons()[-1] == "EncryptionReady"


def test_what_the_kernel_holds_of_others_is_in_the_report_and_agrees_with_what_they_announce(node: Node, asked: Asked):
    node.key(1)
    node.steps(30)
    (report,) = map(from_lease, asked.statuses())
    assert report.incarnation == asked.read().node_infos[0].boot_id == node.memory.incarnation()
    assert report.holds
    node.put({**kube.node_info(2, **OURS), "spec": {**kube.node_info(2)["spec"], "bootID": "another".ljust(36, "0")}})
    node.steps(2)
    (after,) = map(from_lease, asked.statuses())
    assert after.reported_at > report.reported_at
    assert after.holds not in (None, report.holds), "a change of what it holds is told at once"
