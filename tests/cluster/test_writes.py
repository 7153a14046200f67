# SPDX-License-Identifier: Apache-2.0
"""What is written, as the server has it afterwards, and who wins when two write at once."""

import pytest
from kmesh.cluster.snapshot import kmesh_node_info, local_node
from kmesh.errors import ConcurrentChangeError
from kmesh.telling import conditions

from kmesh_bpf import Key
from tests.contract.test_cluster_source import current, rotate, seen
from tests.lab import objects
from tests.unit.cluster import kube


def gone(*_):
    return None


@pytest.mark.parametrize(
    ("at_first", "theirs", "ours", "left"),
    [
        (None, rotate(2), rotate(3), 1),
        (rotate(1), rotate(2), rotate(3), 2),
        (rotate(1), gone, rotate(3), None),
        (rotate(1), rotate(2), gone, 2),
        (rotate(1), gone, gone, None),
    ],
    ids=["both-create", "both-replace", "they-delete-we-replace", "they-replace-we-delete", "both-delete"],
)
def test_a_change_that_somebody_else_was_faster_with_is_told_and_undoes_nothing(opening, at_first, theirs, ours, left):
    mine, other = opening(), opening()
    if at_first:
        mine.change_secret(at_first)

    def late(before, found):
        other.change_secret(theirs)
        return ours(before, found)

    with pytest.raises(ConcurrentChangeError, match="changed by somebody else at the same time; nothing was written"):
        mine.change_secret(late)
    keyring = current(opening())
    assert (keyring and (keyring.current, keyring.keys[keyring.current])) == (left and (left, Key(kube.material(2))))


def test_what_a_daemon_announces_is_applied_in_its_name_so_that_others_may_own_other_fields(server, opening):
    source = opening()
    source.publish(kube.node_info(1))
    found = {"KeyAccepted": conditions.Condition("True", "Accepted", "SPI 1", 1.0, 1)}
    source.publish_conditions(conditions.manifest(found, "n1"))
    server.kubectl("label", "-n", "kmesh-system", "kmeshnodeinfo", "n1", "team=net")
    source.publish(kube.node_info(1, 2))
    stored = server.request("GET", objects.path(kube.node_info(1)))
    ours = [one for one in stored["metadata"]["managedFields"] if one["manager"] == "kmesh-daemon"]
    assert {(one["operation"], one.get("subresource", "")) for one in ours} == {("Apply", ""), ("Apply", "status")}
    assert (stored["spec"]["spi"], stored["metadata"]["labels"]) == (2, {"team": "net"})


def test_what_a_daemon_announces_is_its_node_s_and_stays_so_whatever_else_is_written(server, opening):
    source = opening()
    uid = objects.put(server, kube.node(1))["metadata"]["uid"]
    node = local_node(seen(source, lambda found: bool(found.nodes)), "n1")
    for spi in (1, 2):
        source.publish(kmesh_node_info(node, spi, 4096, "b" * 36))
        found = {"KeyAccepted": conditions.Condition("True", "Accepted", f"SPI {spi}", 1.0, 1)}
        source.publish_conditions(conditions.manifest(found, "n1"))
        (owner,) = server.request("GET", objects.path(kube.node_info(1)))["metadata"]["ownerReferences"]
        assert owner == {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": uid}
    anew = kmesh_node_info(node, 2, 4096, "b" * 36)
    anew["metadata"]["ownerReferences"][0]["uid"] = "of-the-node-made-anew"
    source.publish(anew)
    stored = server.request("GET", objects.path(anew))["metadata"]["ownerReferences"]
    assert [one["uid"] for one in stored] == ["of-the-node-made-anew"], "never of two Nodes at once"
    assert source.read().node_infos[0].owner == "of-the-node-made-anew"


def test_a_go_node_s_announcement_without_a_key_yet_is_taken_and_read(server, opening):
    objects.put(server, kube.node_info(2, 0))
    assert [info.spi for info in opening().read().node_infos] == [0]
