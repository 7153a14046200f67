# SPDX-License-Identifier: Apache-2.0
"""A daemon's node from its start on: what makes it ready, what it tells when it is not, and its addresses and bounds."""

import json
import math

import pytest
from kmesh.launcher.config import parse
from kmesh.telling.listening import HostPort

from kmesh_bpf import ConfigError, KernelError
from tests.unit.cluster import kube


def test_a_node_becomes_ready_step_by_step_and_says_what_it_waits_for(node):
    status, reasons = node.ready()
    assert (status, len(reasons)) == (503, 2)
    node.steps()
    assert node.ready() == (503, ["there is no key: store one with kmeshctl secret"])
    node.key(1)
    node.steps()
    assert node.ready() == (200, [])
    assert (node.metric("peers_ready"), node.metric("peers_expected")) == (2, 2)
    assert (node.metric("key_spi"), node.metric("key_announced_spi")) == (1, 1)
    assert node.reasons() == ["EncryptionReady"]


def test_a_report_that_comes_too_soon_after_another_is_sent_later_and_takes_no_pass(node):
    """Else the cluster would be told for half a minute what was true for a moment."""
    node.steps(1)
    assert [node.reported[-1]["spec"]["holderIdentity"], len(node.reported)] == ["n1", 1]
    node.key(1)
    node.clock.now += 0.5
    for _ in range(10):
        node.clock.now += 0.01
        node.step()
    assert node.ready() == (200, [])
    assert node.recorder.due() == pytest.approx(0.4), "what passes leave is told once a second"
    node.clock.now += node.recorder.due()
    node.recorder.tell()
    assert len(node.reported) == 1, "two reports in a second would be too many"
    assert node.recorder.due() == pytest.approx(1.0)
    node.clock.now += node.recorder.due()
    node.recorder.tell()
    assert (len(node.reported), node.recorder.due()) == (2, math.inf)
    assert [node.report(number)["ready"] for number in (0, 1)] == [False, True]


def test_a_refused_key_is_an_event_and_a_metric_until_a_good_one_comes(node):
    node.key(1)
    node.steps()
    good = (node.folder / "secret-kmesh-ipsec.yaml").read_text()
    node.put(kube.secret(b"no JSON"))
    node.steps()
    assert node.metric("key_refused") == 1
    assert node.reasons()[-1] == "KeyRefused"
    assert node.ready()[0] == 200  # the old key stays, and encrypts
    (node.folder / "secret-kmesh-ipsec.yaml").write_text(good)
    node.steps()
    assert node.metric("key_refused") == 0


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
    assert node.metric("key_settled_spi") == 2


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
    assert node.metric("peers_ready") == 1
    node.clock.now += 60
    node.steps(1)
    page, condition = json.loads(node.recorder.answer("/readyz").body), node.recorder._conditions["EncryptionReady"]
    report = node.report()
    assert page["reasons"] == report["reasons"] == [event["message"]] == [condition.message]
    assert (page["ready"], report["ready"], condition.status) == (False, False, "False")


def test_pod_cidrs_that_a_peer_announces_are_nobody_s(node):
    node.key(1)
    double = kube.node_info(3)
    double["spec"]["podCIDRS"] = ["10.244.2.0/24"]
    node.put(double)
    node.steps()
    assert not [one for one in node.told if one["reason"].startswith("Peer")]
    assert node.metric("peers_ready") == 2


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
    status, (reason,) = node.ready()
    assert status == 503
    assert "operations failed, the first: write the map" in reason
    assert node.reasons()[-1] == "EncryptionNotReady"
    node.memory.refuse = lambda operation: None
    node.steps()
    assert node.ready() == (200, [])
    assert node.reasons()[-1] == "EncryptionReady"


def test_a_view_that_grows_old_makes_the_node_unready_and_leaves_encryption_alone(node):
    node.key(1)
    node.steps()
    before = dict(node.memory.sas)
    away = node.folder.with_name("away")
    node.folder.rename(away)
    node.source.changed()
    node.clock.now += 61
    assert "has not been seen for 61 s" in node.ready()[1][0]
    assert node.metric("view_age_seconds") == 61
    node.steps(1)
    assert node.memory.sas == before
    away.rename(node.folder)
    node.source.changed()
    assert node.ready() == (200, [])


def test_a_pass_that_is_given_up_is_told_and_the_loop_is_alive(node):
    node.key(1)
    node.steps()
    node.recorder.failed("the kernel sent nonsense")
    assert node.ready() == (503, ["the last pass had to be given up: the kernel sent nonsense"])
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
