# SPDX-License-Identifier: Apache-2.0
"""What a daemon announces of itself: when, and under which incarnation."""

import pytest
import yaml
from kmesh.cluster import secret
from kmesh.errors import ClusterError

from kmesh_bpf import KernelError, Key
from kmesh_bpf.core import operations as ops
from tests.unit.cluster import kube
from tests.unit.launcher.standin import Node


def announced(node: Node) -> str | None:
    return next((info.boot_id for info in node.source.read().node_infos if info.name == "n1"), None)


def test_flushed_sas_are_an_event_that_names_the_new_incarnation(node):
    node.key(1)
    node.steps()
    node.memory.sas.clear()
    node.memory.usage.clear()
    node.steps()
    (event,) = [one for one in node.told if one["reason"] == "SecurityAssociationsLost"]
    assert node.memory.remembered in event["message"]
    assert event["involvedObject"]["name"] == "n1"


def test_a_node_whose_announcement_was_deleted_comes_back_as_another_for_its_peers_have_removed_its_sas(node):
    node.key(1)
    node.steps()
    before = announced(node)
    assert before not in (kube.BOOT_ID, None)
    node.source.withdraw("n1")
    node.steps(1)
    after = announced(node)
    assert after not in (before, None)
    assert node.memory.remembered == after
    node.steps()
    assert announced(node) == after, "once"
    assert node.reasons()[-1] == "SecurityAssociationsLost"


def test_one_whose_announcement_cannot_be_written_becomes_another_once(node, monkeypatch):
    node.key(1)
    node.steps()
    node.source.withdraw("n1")

    def refusing(info):
        raise ClusterError("no")

    with monkeypatch.context() as patch:
        patch.setattr(node.source, "publish", refusing)
        incarnations = set()
        for _ in range(3):
            node.steps(1)
            incarnations.add(node.memory.remembered)
        assert node.ready() == (503, ["what this node has to announce cannot be written: no"])
    assert len(incarnations) == 1
    node.steps()
    assert {announced(node)} == incarnations


def test_an_announcement_deleted_and_made_anew_by_somebody_else_is_told_by_its_uid(node):
    stored = node.source.publish
    uid = "first"
    node.source.publish = lambda info: stored({**info, "metadata": {**info["metadata"], "uid": uid}})
    node.key(1)
    node.steps()
    before = announced(node)
    file = node.folder / "kmeshnodeinfo-n1.yaml"
    file.write_text(file.read_text().replace("first", "other"))
    uid = "other"
    node.steps()
    assert announced(node) not in (before, None)
    again = announced(node)
    node.steps()
    assert announced(node) == again


def test_a_node_whose_addresses_change_and_change_back_never_counts_anew_under_an_old_key(node):
    node.key(1)
    node.steps()
    used, known = [{sa.key for sa in node.memory.sas.values()}], [announced(node)]
    there = kube.node(1)
    for addresses in (there["status"]["addresses"][1:], there["status"]["addresses"]):
        node.put({**there, "status": {**there["status"], "addresses": addresses}})
        node.steps()
        used.append({sa.key for sa in node.memory.sas.values()})
        known.append(announced(node))
        node.steps()
        assert announced(node) == known[-1], "once"
    assert len(set(known)) == len(known) == 3
    assert len(set().union(*used)) == sum(map(len, used))


def kinds_of_writes(node: Node) -> list[str]:
    """Record what is done to our KmeshNodeInfo; the server counts uids."""
    done, number = [], iter(range(1, 99))
    stored, withdrawn = node.source.publish, node.source.withdraw

    def publish(info):
        there = (node.folder / "kmeshnodeinfo-n1.yaml").exists()
        done.append("update" if there else "create")
        uid = yaml.safe_load((node.folder / "kmeshnodeinfo-n1.yaml").read_text())["metadata"]["uid"] if there else None
        stored({**info, "metadata": {**info["metadata"], "uid": uid or f"uid-{next(number)}"}})

    def withdraw(name, *, status=True):
        assert not status, "the report stays"
        done.append("delete")
        withdrawn(name, status=status)

    node.source.publish, node.source.withdraw = publish, withdraw
    return done


def test_a_new_incarnation_is_announced_by_another_object_where_a_go_node_must_see_it(node):
    done = kinds_of_writes(node)
    node.key(1)
    node.steps()
    assert done == ["create"]
    for index in (2, 3):
        node.put(kube.node_info(index, **{"kmesh.net/ipsec-replay-window": "4096"}))
    node.memory.sas.clear()
    node.steps()
    assert done == ["create", "update"]
    node.put(kube.node_info(3))
    node.memory.sas.clear()
    node.steps()
    assert done == ["create", "update", "delete", "create"]
    first = announced(node)
    node.steps()
    assert (announced(node), node.memory.remembered, done[4:]) == (first, first, []), "it was us, and nobody else"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_deletion_after_which_nothing_can_be_created_ends_well(node, monkeypatch, restarted):
    node.key(1)
    node.steps()
    node.memory.sas.clear()

    def refusing(info):
        raise ClusterError("no")

    with monkeypatch.context() as patch:
        patch.setattr(node.source, "publish", refusing)
        node.steps(1)
    assert announced(node) is None
    if restarted:
        node.restart()
    node.steps()
    assert announced(node) == node.memory.remembered
    before = announced(node)
    node.steps()
    assert announced(node) == before


def test_an_incarnation_that_somebody_else_wrote_into_our_announcement_is_ours_no_more(node):
    node.key(1)
    node.steps()
    before, file = announced(node), node.folder / "kmeshnodeinfo-n1.yaml"
    file.write_text(file.read_text().replace(before, kube.BOOT_ID))
    node.steps()
    assert announced(node) not in (before, kube.BOOT_ID)


def test_lost_pins_and_an_uninstall_make_another_incarnation_whatever_is_announced(node):
    node.key(1)
    node.steps()
    keys, seen = {sa.key for sa in node.memory.sas.values()}, [announced(node)]
    for flushed in (False, True):
        node.memory.remembered = None
        for lost in (node.memory.peers, node.memory.pods, *([node.memory.sas, node.memory.usage] if flushed else [])):
            lost.clear()
        node.restart()
        node.steps()
        seen.append(announced(node))
        made = {sa.key for sa in node.memory.sas.values()}
        assert not made & keys
        keys |= made
    assert len(set(seen)) == 3
    assert kube.BOOT_ID not in seen


def test_a_peer_that_is_back_under_used_keys_gets_no_packet_until_ours_change_at_most_once_in_ten_minutes(node):
    node.key(1)
    node.steps()
    other, seen = kube.node_info(3), [announced(node)]
    file = node.folder / "kmeshnodeinfo-n3.yaml"
    for _ in range(2):
        file.unlink()
        node.steps(1)
        node.clock.now += 31
        node.steps()
        assert not any("10.10.0.3" in map(str, (sa.src, sa.dst)) for sa in node.memory.sas.values())
        node.put(other)
        node.steps()
        seen.append(announced(node))
    assert seen[0] != seen[1] == seen[2]
    assert node.metric("peers_ready") == 1
    assert "n3: it is back, and its keys were in use before" in node.ready()[1][0]
    node.clock.now += 600
    node.steps()
    assert announced(node) not in seen
    assert node.ready() == (200, [])


def test_a_node_announces_a_key_only_when_it_could_decrypt_with_it(node):
    node.memory.refuse = lambda op: KernelError("add", "SA", 12) if isinstance(op, ops.AddSa) and op.sa.mark else None
    node.key(1)
    node.steps()
    assert announced(node) is None
    node.memory.refuse = lambda op: None
    node.steps()
    assert announced(node) is not None


def test_a_node_announces_a_key_only_when_its_programs_are_attached(node):
    node.memory.refuse = lambda operation: KernelError("do", "it", 1) if isinstance(operation, ops.Attach) else None
    node.key(1)
    node.steps()
    assert announced(node) is None, "nobody would mark for decryption what peers send then"
    node.memory.refuse = lambda operation: KernelError("do", "it", 1) if isinstance(operation, ops.SetPod) else None
    node.steps()
    assert announced(node) == node.memory.remembered, "of what receives nothing is missing"


@pytest.mark.parametrize("window", [0, 64])
def test_another_window_is_another_incarnation_though_no_key_of_the_sas_in_place_is_known(node, window):
    """Found by scripts/simulate: peers had made SAs for the next key by what was announced before, with ESN."""
    for index in (2, 3):
        node.put(kube.node_info(index, **{"kmesh.net/ipsec-replay-window": "4096"}))
    node.key(1)
    node.steps()
    before = announced(node)
    used = {sa.key for sa in node.memory.sas.values()}
    node.put(secret.render(secret.Keyring(7, {7: Key(kube.material(7))})))
    node.restart(f"--replay-window={window}")
    node.steps()
    after = announced(node)
    assert after not in (before, None)
    assert used.isdisjoint(sa.key for sa in node.memory.sas.values())
    assert {sa.replay_window for sa in node.memory.sas.values()} == {window}
    node.steps()
    assert announced(node) == after, "once"


def test_an_announced_window_that_somebody_changes_is_another_incarnation_for_peers_have_made_sas_by_it(node):
    node.key(1)
    node.steps()
    before = announced(node)
    file = node.folder / "kmeshnodeinfo-n1.yaml"
    file.write_text(file.read_text().replace("'4096'", "'0'"))
    node.steps()
    after = announced(node)
    assert after not in (before, None)
    node.steps()
    assert announced(node) == after, "once"


def told_to_send(node: Node) -> int:
    return next(info.sends for info in node.source.read().node_infos if info.name == "n1")


def test_what_is_sent_with_is_announced_when_no_peer_is_sent_an_older_version(node):
    node.key(1)
    node.steps()
    assert (told_to_send(node), spi_of(node)) == (1, 1)
    node.key(2)
    node.steps()
    assert (told_to_send(node), spi_of(node)) == (1, 2)
    node.put(kube.node_info(2, 2))
    node.steps()
    assert (told_to_send(node), spi_of(node)) == (1, 2), "to the third one it is"
    node.put(kube.node_info(3, 2))
    node.steps()
    assert (told_to_send(node), spi_of(node)) == (2, 2)


def spi_of(node: Node) -> int:
    return next(info.spi for info in node.source.read().node_infos if info.name == "n1")
