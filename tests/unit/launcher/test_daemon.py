import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from kmesh.errors import ClusterError
from kmesh.launcher.config import HostPort, parse
from kmesh.launcher.daemon import LONGEST_SETTLE, SETTLE, Daemon
from kmesh.launcher.looks import DEAREST, LOOK, Looks

from kmesh_bpf import ConfigError, KernelError
from kmesh_bpf.core import operations as ops
from tests.unit.cluster import kube
from tests.unit.launcher.standin import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def ready(node: Node) -> tuple[int, list[str]]:
    page = node.recorder.answer("/readyz")
    return page.status, json.loads(page.body)["reasons"]


def metric(node: Node, name: str) -> float:
    lines = node.recorder.answer("/metrics").body.splitlines()
    return float(next(line for line in lines if line.startswith(f"kmesh_ipsec_{name} ")).split()[-1])


def test_a_node_becomes_ready_step_by_step_and_says_what_it_waits_for(node):
    status, reasons = ready(node)
    assert (status, len(reasons)) == (503, 2)
    node.steps()
    assert ready(node) == (503, ["there is no key: store one with kmeshctl secret"])
    node.key(1)
    node.steps()
    assert ready(node) == (200, [])
    assert (metric(node, "peers_ready"), metric(node, "peers_expected")) == (2, 2)
    assert (metric(node, "key_spi"), metric(node, "key_announced_spi")) == (1, 1)
    assert node.reasons() == ["EncryptionReady"]


def test_a_refused_key_is_an_event_and_a_metric_until_a_good_one_comes(node):
    node.key(1)
    node.steps()
    good = (node.folder / "secret-kmesh-ipsec.yaml").read_text()
    node.put(kube.secret(b"no JSON"))
    node.steps()
    assert metric(node, "key_refused") == 1
    assert node.reasons()[-1] == "KeyRefused"
    assert ready(node)[0] == 200  # the old key stays, and encrypts
    (node.folder / "secret-kmesh-ipsec.yaml").write_text(good)
    node.steps()
    assert metric(node, "key_refused") == 0


def test_a_replacement_ends_with_an_event(node):
    node.key(1)
    node.steps()
    node.key(2)
    node.steps()
    assert "KeyReplaced" not in node.reasons()
    for index in (2, 3):
        node.put(kube.node_info(index, 2))
    node.clock.now += 60
    node.steps()
    node.clock.now += 60
    node.steps()
    assert node.reasons()[-1] == "KeyReplaced"
    assert metric(node, "key_settled_spi") == 2


def test_flushed_sas_are_an_event_that_names_the_new_incarnation(node):
    node.key(1)
    node.steps()
    node.memory.sas.clear()
    node.memory.usage.clear()
    node.steps()
    (event,) = [one for one in node.told if one["reason"] == "SecurityAssociationsLost"]
    assert node.memory.incarnation in event["message"]
    assert event["involvedObject"]["name"] == "n1"


def announced(node: Node) -> str | None:
    return next((info.boot_id for info in node.source.read().node_infos if info.name == "n1"), None)


def test_a_node_whose_announcement_was_deleted_comes_back_as_another_for_its_peers_have_removed_its_sas(node):
    node.key(1)
    node.steps()
    before = announced(node)
    assert before not in (kube.BOOT_ID, None)
    node.source.withdraw("n1")
    node.steps(1)
    after = announced(node)
    assert after not in (before, None)
    assert node.memory.incarnation == after
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
            with pytest.raises(ClusterError):
                node.steps(1)
            incarnations.add(node.memory.incarnation)
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
    assert (announced(node), node.memory.incarnation, done[4:]) == (first, first, []), "it was us, and nobody else"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_deletion_after_which_nothing_can_be_created_ends_well(node, monkeypatch, restarted):
    node.key(1)
    node.steps()
    node.memory.sas.clear()

    def refusing(info):
        raise ClusterError("no")

    with monkeypatch.context() as patch:
        patch.setattr(node.source, "publish", refusing)
        with pytest.raises(ClusterError):
            node.steps(1)
    assert announced(node) is None
    if restarted:
        node.daemon = Daemon(node.daemon.config, node.source, node.kernel, node.recorder)
    node.steps()
    assert announced(node) == node.memory.incarnation
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
        node.memory.incarnation = None
        for lost in (node.memory.peers, node.memory.pods, *([node.memory.sas, node.memory.usage] if flushed else [])):
            lost.clear()
        node.daemon = Daemon(node.daemon.config, node.source, node.kernel, node.recorder)
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
    assert metric(node, "peers_ready") == 1
    assert "n3: it is back, and its keys were in use before" in ready(node)[1][0]
    node.clock.now += 600
    node.steps()
    assert announced(node) not in seen
    assert ready(node) == (200, [])


def test_a_node_announces_a_key_only_when_it_could_decrypt_with_it(node):
    node.memory.refuse = lambda op: KernelError("add", "SA", 12) if isinstance(op, ops.AddSa) and op.sa.mark else None
    node.key(1)
    node.steps()
    assert announced(node) is None
    node.memory.refuse = lambda op: None
    node.steps()
    assert announced(node) is not None


@pytest.mark.parametrize("address", ["10.10.0.1", "10.10.0.2", "10.244.1.10"])
def test_a_peer_that_claims_what_is_another_s_is_an_event_and_gets_no_traffic(node, address):
    node.key(1)
    double = kube.node_info(3)
    double["spec"]["addresses"] = ["10.10.0.3", address]
    node.put(kube.node(3))
    node.put(double)
    node.steps()
    (event,) = [one for one in node.told if one["reason"].startswith("Peer")]
    assert event["reason"] == "PeerQuarantined"
    assert f"peer n3 claims {address}, which is of" in event["message"]
    assert metric(node, "peers_ready") == 1
    node.clock.now += 60
    node.steps(1)
    page, condition = json.loads(node.recorder.answer("/readyz").body), node.recorder._conditions["EncryptionReady"]
    assert page["reasons"] == list(node.daemon.memory.status.reasons) == [event["message"]] == [condition.message]
    assert (page["ready"], node.daemon.memory.status.ready, condition.status) == (False, False, "False")


def test_pod_cidrs_that_a_peer_announces_are_nobody_s(node):
    node.key(1)
    double = kube.node_info(3)
    double["spec"]["podCIDRS"] = ["10.244.2.0/24"]
    node.put(double)
    node.steps()
    assert not [one for one in node.told if one["reason"].startswith("Peer")]
    assert metric(node, "peers_ready") == 2


def test_operations_that_fail_make_the_node_unready_and_say_so(node, caplog):
    node.key(1)
    node.steps()
    node.memory.refuse = lambda operation: KernelError("write", "the map", 12)
    node.put(kube.pod("another", 2, 11))
    caplog.clear()
    with caplog.at_level("INFO", "kmesh"):
        node.steps(20)
    said = [record.getMessage() for record in caplog.records]
    assert said.count(next(line for line in said if "write the map" in line)) == 1, "once, as long as it lasts"
    assert "SetPod" not in said, "what was refused was not done"
    status, (reason,) = ready(node)
    assert status == 503
    assert "operations failed, the first: write the map" in reason
    assert node.reasons()[-1] == "EncryptionNotReady"
    node.memory.refuse = lambda operation: None
    node.steps()
    assert ready(node) == (200, [])
    assert node.reasons()[-1] == "EncryptionReady"


def test_a_view_that_grows_old_makes_the_node_unready_and_leaves_encryption_alone(node):
    node.key(1)
    node.steps()
    before = dict(node.memory.sas)
    away = node.folder.with_name("away")
    node.folder.rename(away)
    node.source.changed()
    node.clock.now += 61
    assert "has not been seen for 61 s" in ready(node)[1][0]
    assert metric(node, "view_age_seconds") == 61
    node.steps(1)
    assert node.memory.sas == before
    away.rename(node.folder)
    node.source.changed()
    assert ready(node) == (200, [])


def test_a_pass_that_is_given_up_is_told_and_the_loop_is_alive(node):
    node.key(1)
    node.steps()
    node.recorder.failed("the kernel sent nonsense")
    assert ready(node) == (503, ["the last pass had to be given up: the kernel sent nonsense"])
    assert node.recorder.answer("/healthz").status == 200
    node.clock.now += 91
    assert node.recorder.answer("/healthz").status == 503


def test_no_key_shows_on_any_page_or_in_any_event(node):
    node.key(0x5A)
    node.steps()
    node.put(kube.secret(b"no JSON"))
    node.steps()
    told = json.dumps(node.told) + "".join(node.recorder.answer(path).body for path in ("/readyz", "/metrics"))
    for secret in ("5a5a5a", "WlpaWlpa", "ZZZZ"):
        assert secret not in told


@pytest.mark.parametrize(
    ("text", "meant"), [(":15020", ":15020"), ("127.0.0.1:80", "127.0.0.1:80"), ("[::1]:0", "[::1]:0")]
)
def test_a_health_address_is_an_address_and_a_port(text, meant):
    assert str(parse([f"--health-address={text}"], None, "h").health) == meant


def test_the_health_address_is_15020_by_default_and_none_when_empty():
    assert parse([], None, "h").health == HostPort(None, 15020)
    assert parse(["--health-address="], None, "h").health is None
    assert parse(["--max-view-age=0.5"], None, "h").max_view_age == 0.5


@pytest.mark.parametrize(
    "flag",
    [f"--health-address={bad}" for bad in ("15020", ":", ":x", ":65536", "::1:80", "[127.0.0.1]:80", "host:80", "[]:1")]
    + [f"--max-view-age={bad}" for bad in ("0", "-1", "inf", "nan", "x")],
)
def test_what_cannot_be_listened_on_or_waited_for_is_refused_in_a_sentence(flag):
    with pytest.raises(ConfigError, match=r"argument --(health-address|max-view-age): .*see --help"):
        parse([flag], None, "h")


@pytest.mark.parametrize(
    ("took", "ago", "settled"),
    [(0.0, 0.0, SETTLE), (0.5, 0.0, 0.5), (0.5, 0.25, 0.25), (0.5, 9.0, SETTLE), (60.0, 0.0, LONGEST_SETTLE)],
)
def test_between_two_passes_is_as_long_as_the_first_took_within_bounds(tmp_path, monkeypatch, took, ago, settled):
    node, slept = Node(tmp_path), []
    node.steps(1)
    node.daemon.took, node.daemon.ended = took, 100.0 - ago
    monkeypatch.setattr("kmesh.launcher.daemon.time.monotonic", lambda: 100.0)
    node.put(kube.pod("late", 2, 77))
    node.kernel.changed = lambda: False
    monkeypatch.setattr("kmesh.launcher.daemon.time.sleep", slept.append)
    node.daemon._sleep(SimpleNamespace(select=lambda seconds: []), 30.0)
    assert slept == [settled]


class Waiting:
    """The daemon's wait, over a clock that goes on by what is waited for."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch, *, device_after: float = 999.0) -> None:
        self.node, self.now, self.looked = node, 100.0, []
        self.device_at, self.attached_at, self.found_after = self.now + device_after, None, 999
        monkeypatch.setattr("kmesh.launcher.daemon.time.monotonic", lambda: self.now)
        monkeypatch.setattr("kmesh.launcher.daemon.time.sleep", self.select)
        monkeypatch.setattr(node.kernel, "changed", self.changed, raising=False)
        monkeypatch.setattr(node.kernel, "look", self.look, raising=False)
        monkeypatch.setattr(node.kernel, "attach_missing", self.attach, raising=False)
        node.source.changed = lambda: False

    def select(self, seconds: float) -> None:
        self.now += seconds

    def changed(self) -> bool:
        told, self.device_at = self.now >= self.device_at, self.device_at if self.now < self.device_at else 999.0
        return told

    def look(self) -> bool:
        self.looked.append(self.now)
        return len(self.looked) > self.found_after

    def attach(self, addresses, uplinks):
        self.attached_at = self.now
        return (), ()

    def sleep(self, seconds: float) -> float:
        began = self.now
        self.node.daemon._sleep(SimpleNamespace(select=self.select), seconds)
        return self.now - began


def test_while_nothing_happens_the_daemon_looks_every_second_and_makes_no_pass(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.steps(1)
    waiting = Waiting(node, monkeypatch)
    assert waiting.sleep(30.0) == pytest.approx(30.0)
    gaps = [after - before for before, after in pairwise(waiting.looked)]
    assert len(waiting.looked) == pytest.approx(29, abs=1)
    assert max(gaps) < LOOK + 0.3


def test_a_look_that_finds_something_ends_the_wait_at_once(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.steps(1)
    waiting = Waiting(node, monkeypatch)
    waiting.found_after = 2
    assert waiting.sleep(30.0) == pytest.approx(3 * LOOK, abs=0.7)


def test_after_a_pass_that_was_given_up_the_daemon_looks_and_keeps_its_distance(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.steps(1)
    waiting = Waiting(node, monkeypatch)
    waiting.found_after = 0
    began = waiting.now
    node.daemon._sleep(SimpleNamespace(select=waiting.select), 10.0, heed=False)
    assert waiting.now - began == pytest.approx(10.0)
    assert len(waiting.looked) >= 8


def test_a_device_that_comes_has_its_programs_before_the_daemon_waits_for_more_and_makes_a_pass(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.steps(1)
    node.daemon.took, node.daemon.ended = 2.0, 100.0
    waiting = Waiting(node, monkeypatch, device_after=0.0)
    waiting.sleep(30.0)
    assert waiting.attached_at - 100.0 == pytest.approx(node.source.poll_interval)
    assert waiting.now > waiting.attached_at


def test_a_look_that_fails_leaves_it_to_a_pass_to_tell_and_a_dear_one_comes_rarely():
    now = [0.0]

    def look() -> bool:
        now[0] += 0.1
        raise KernelError("dump", "the map", 12)

    looks = Looks(SimpleNamespace(look=look), lambda: now[0])
    assert looks.left() == LOOK
    now[0] += LOOK
    assert looks.left() == 0
    assert looks.finds_anything()
    assert looks.left() == pytest.approx(DEAREST * 0.1)
