# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kmesh.cluster.holdings import BYTES
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.status import (
    COUNTERS,
    DROPPING,
    STATUS_ANNOTATION,
    Drop,
    NodeStatus,
    PeerStatus,
    from_lease,
    to_lease,
)

from kmesh_bpf import ConfigError, ProblemKind, contract
from tests.unit.cluster import kube

STATUS = NodeStatus(
    node="n1",
    version="0.1.0",
    reported_at=1795553092.123456,
    ready=True,
    reasons=(),
    spi=2,
    newest_spi=2,
    spi_out=(1, 2),
    peers_ready=2,
    peers_expected=2,
    peers_on_newest=1,
    old_inbound=2,
    replacing_since=1795553090.5,
    sequence_use=0.25,
    counters={"dropped_by_guard": 3, "dropped_clear_text": 1, "esp_unknown_peer": 7},
    last_drop=Drop("dropped_by_guard", 1795553000.0),
    strict=True,
    services=("10.96.0.0/16",),
    nat_exemption=True,
    peers=(PeerStatus("n2", True, 2, 2, 0.25), PeerStatus("n3", True, 2, 1, 0.0)),
)
SPI = st.integers(0, (1 << 32) - 1)
COUNT = st.integers(0, (1 << 64) - 1)
SHARE = st.floats(0, 1)
TIME = st.integers(0, 4102444800 * 10**6).map(lambda micros: micros / 10**6)
NAME = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?\Z")
REPORTS = st.builds(
    NodeStatus,
    node=NAME,
    version=st.text(min_size=1),
    reported_at=TIME,
    ready=st.booleans(),
    reasons=st.lists(st.text(), max_size=3).map(tuple),
    spi=SPI,
    newest_spi=SPI,
    spi_out=st.none() | st.tuples(SPI, SPI),
    peers_ready=COUNT,
    peers_expected=COUNT,
    peers_on_newest=COUNT,
    old_inbound=COUNT,
    replacing_since=st.none() | TIME,
    sequence_use=SHARE,
    counters=st.dictionaries(st.sampled_from(COUNTERS), COUNT),
    last_drop=st.none() | st.builds(Drop, st.text(min_size=1), TIME),
    strict=st.booleans(),
    services=st.sampled_from([(), ("10.96.0.0/16", "fd00:96::/108")]),
    nat_exemption=st.booleans(),
    peers=st.lists(st.builds(PeerStatus, NAME, st.booleans(), SPI, SPI, SHARE), max_size=3).map(tuple),
    incarnation=st.sampled_from(["", "b" * 36]),
    incarnation_since=TIME,
    holds=st.integers(0, (1 << 8 * BYTES) - 1),
    problems=st.lists(st.sampled_from([kind.name for kind in ProblemKind]), max_size=3).map(tuple),
)


@given(REPORTS)
def test_what_a_daemon_publishes_is_what_a_reader_gets(status):
    assert from_lease(to_lease(status)) == status


@given(REPORTS)
def test_it_survives_yaml_and_json_too(status):
    lease = to_lease(status)
    assert from_lease(json.loads(json.dumps(lease))) == status
    assert from_lease(yaml.safe_load(yaml.safe_dump(lease))) == status


def test_every_counter_of_packets_dropped_is_reported_as_such():
    assert set(DROPPING) == {name for name in contract.COUNTERS if name.startswith("dropped_")}
    assert set(DROPPING) < set(COUNTERS) < set(contract.COUNTERS)


def test_the_lease_is_one_that_kubernetes_takes_and_kubectl_shows():
    lease = to_lease(STATUS)
    assert (lease["apiVersion"], lease["kind"]) == ("coordination.k8s.io/v1", "Lease")
    assert (lease["metadata"]["namespace"], lease["metadata"]["name"]) == ("kmesh-system", "kmesh-ipsec-n1")
    assert lease["spec"] == {
        "holderIdentity": "n1",
        "leaseDurationSeconds": 180,
        "renewTime": "2026-11-24T20:44:52.123456+00:00",
    }
    assert " " not in lease["metadata"]["annotations"][STATUS_ANNOTATION]


def changed(**fields):
    lease = to_lease(STATUS)
    report = json.loads(lease["metadata"]["annotations"][STATUS_ANNOTATION]) | fields
    return lease | {"metadata": lease["metadata"] | {"annotations": {STATUS_ANNOTATION: json.dumps(report)}}}


def test_fields_of_a_later_version_are_ignored():
    lease = changed(invented=["x"], counters={**STATUS.counters, "invented": "x"})
    lease["spec"] |= {"acquireTime": None, "leaseTransitions": 3}
    assert from_lease(lease) == STATUS


def test_kinds_of_problems_may_be_missing_as_in_former_versions_or_unknown_as_in_later_ones():
    assert from_lease(changed(problems=None)) == STATUS
    assert from_lease(changed(problems=["INVENTED"])).problems == ("INVENTED",)


def test_a_time_as_kubernetes_writes_it_is_read():
    lease = to_lease(STATUS)
    lease["spec"]["renewTime"] = "2026-11-24T20:44:52.123456Z"
    assert from_lease(lease).reported_at == STATUS.reported_at


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"spi": -1}, "spi is no number from 0 to 4294967295"),
        ({"spi": None}, "spi is no number from 0 to 4294967295"),
        ({"version": 3}, "version is no string"),
        ({"ready": "yes"}, "ready is neither true nor false"),
        ({"spiOut": [1]}, "spiOut is neither empty nor lowest and highest"),
        ({"spiOut": [1, "2"]}, "spiOut[1] is no number from 0 to 4294967295"),
        ({"sequenceUse": 1.5}, "sequenceUse is no number from 0 to 1"),
        ({"sequenceUse": float("nan")}, "sequenceUse is no number from 0 to 1"),
        ({"replacingSince": "now"}, "replacingSince is no number from 0 to 4102444800.0"),
        ({"counters": {"dropped_by_guard": 1.5}}, "counters.dropped_by_guard is no number"),
        ({"lastDrop": {"at": 1}}, "lastDrop.counter is missing"),
        ({"services": ["x"]}, "services: 'x' does not appear to be an IPv4 or IPv6 network"),
        ({"peers": [{"name": "n2", "spiIn": True}]}, "peers[0].spiIn is no number"),
        ({"peers": {}}, "peers is no list"),
        ({"problems": "INTERFERENCE"}, "problems is no list"),
        ({"problems": [1]}, "problems[0] is no string"),
        ({"holds": "x", "incarnation": "i", "incarnationSince": 1}, "holds: 'x' is no digest of 256 bytes in base64"),
        ({"holds": f"{'A' * 342}==", "incarnation": "i"}, "incarnationSince is no number from 0 to 4102444800.0"),
        ({"holds": 1}, "holds is no string"),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_its_lease(fields, sentence):
    with pytest.raises(ConfigError) as caught:
        from_lease(changed(**fields))
    assert str(caught.value).startswith(f"Lease kmesh-ipsec-n1: annotation kmesh.net/ipsec-status.{sentence}")


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("metadata", "annotations"), {}, "kmesh-ipsec-n1: annotation kmesh.net/ipsec-status is missing"),
        (("metadata", "annotations"), {STATUS_ANNOTATION: "{"}, "annotation kmesh.net/ipsec-status is no JSON"),
        (("metadata", "annotations"), {STATUS_ANNOTATION: "[]"}, "kmesh.net/ipsec-status is no JSON object"),
        (("metadata", "name"), None, "of no name: metadata.name is missing"),
        (("metadata", "name"), "kmesh-ipsec-n2", "spec.holderIdentity: 'n1' does not belong in a Lease of this name"),
        (("metadata", "name"), "kmesh-ipsec-n1\n", "of no name: metadata.name, 'kmesh-ipsec-n1\\n', is no name"),
        (("metadata", "annotations"), {STATUS_ANNOTATION: " " * 140_000}, "has 140000 characters, more than 131072"),
        (("metadata", "annotations"), {STATUS_ANNOTATION: "9" * 5000}, "annotation kmesh.net/ipsec-status is no JSON"),
        (("metadata", "annotations"), {STATUS_ANNOTATION: '{"version": "\\ud800"}'}, "version holds half a character"),
        (("spec", "holderIdentity"), "n" * 1000, f"spec.holderIdentity: '{'n' * 64}…' does not belong"),
        (("spec", "renewTime"), "\ud800", "spec.renewTime holds half a character"),
        (("spec", "holderIdentity"), "", "kmesh-ipsec-n1: spec.holderIdentity is missing"),
        (("spec", "renewTime"), None, "kmesh-ipsec-n1: spec.renewTime is missing"),
        (("spec", "renewTime"), "yesterday", "spec.renewTime: 'yesterday' is no time (RFC 3339)"),
        (("spec", "renewTime"), "2026-11-24T20:44:52", "spec.renewTime: '2026-11-24T20:44:52' has no time zone"),
    ],
)
def test_a_lease_that_is_no_report_is_told_with_its_reason(path, value, sentence):
    lease = to_lease(STATUS)
    lease[path[0]][path[1]] = value
    with pytest.raises(ConfigError) as caught:
        from_lease(lease)
    assert sentence in str(caught.value)


def test_dropped_counts_what_our_programs_dropped_and_nothing_else():
    assert STATUS.dropped == 4
    assert replace(STATUS, counters={}).dropped == 0


@pytest.fixture
def folder(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)

    return FolderCluster(tmp_path), write


def test_a_folder_gives_the_reports_in_it_and_skips_what_it_cannot_read(folder):
    source, write = folder
    write("lease-kmesh-ipsec-n1.yaml", yaml.safe_dump(to_lease(STATUS)))
    write("lease-kmesh-ipsec-n2.yaml", "{")
    write("lease-other.yaml", yaml.safe_dump(to_lease(replace(STATUS, node="n3"))))
    assert [from_lease(lease) for lease in source.statuses()] == [STATUS]


def test_a_report_in_a_folder_wakes_nobody(folder):
    source, write = folder
    write("node.yaml", yaml.safe_dump(kube.node()))
    source.read()
    write("lease-kmesh-ipsec-n1.yaml", yaml.safe_dump(to_lease(STATUS)))
    assert not source.changed()
    assert source.read().problems == ()
