# SPDX-License-Identifier: Apache-2.0
"""What every ClusterSource promises; a folder with a fixture ``opened`` of its own takes these tests over."""

import select
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from kmesh.cluster import secret
from kmesh.cluster.objects import ClusterObjects, parse
from kmesh.cluster.source import ClusterSource
from kmesh.cluster.status import to_lease

from kmesh_bpf import Key, KmeshBpfError
from tests.unit.cluster import kube
from tests.unit.cluster.test_status import STATUS

ENROLLED = {"istio.io/dataplane-mode": "Kmesh"}


def seen(source: ClusterSource, true: Callable[[ClusterObjects], bool]) -> ClusterObjects:
    """Read until what others have written has arrived."""
    end = time.monotonic() + 20
    while not true(source.read()):
        assert time.monotonic() < end, source.read()
        time.sleep(0.01)
    return source.read()


def eventually(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def lease(node: str, **annotations: str) -> dict:
    metadata = {"name": f"kmesh-ipsec-{node}", "namespace": "kmesh-system", "annotations": annotations}
    spec = {"holderIdentity": node}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


@pytest.fixture
def source(opened) -> ClusterSource:
    return opened[0]()


@pytest.fixture
def create(opened) -> Callable[[dict], None]:
    return opened[1]


def rotate(number: int):
    def change(before, objects):
        held = secret.parse_keys(before) if before is not None else None
        announced = {info.name: info.spi for info in objects.node_infos}
        return secret.render(secret.next_keys(held, announced, Key(kube.material(number))))

    return change


def current(source: ClusterSource) -> secret.Keyring | None:
    found = source.read().secret
    return secret.parse_keys(found) if found is not None else None


def test_an_empty_cluster_is_empty_and_has_no_problems(source):
    objects = source.read()
    assert (objects.nodes, objects.pods, objects.node_infos) == ((), (), ())
    assert (objects.secret, objects.problems, objects.complete) == (None, (), True)
    assert source.age() == 0.0
    assert source.statuses() == ()


def test_objects_of_every_kind_are_given_as_parsed(source, create):
    manifests = [kube.namespace(**ENROLLED), kube.node(), kube.pod(), kube.node_info(3)]
    for manifest in manifests:
        create(manifest)
    objects = seen(source, lambda objects: len(objects.pods) == len(objects.node_infos) == 1)
    default = [one for one in objects.namespaces if one.name == "default"]
    # The server makes up a uid of its own, and writes when it was.
    nodes = [replace(node, uid=f"uid-of-{node.name}") for node in objects.nodes]
    pods = [replace(pod, created="") for pod in objects.pods]
    assert [*default, *nodes, *pods, *objects.node_infos] == [parse(manifest) for manifest in manifests]


def test_services_are_given_with_all_their_addresses(source, create):
    balanced = {"loadBalancer": {"ingress": [{"ip": "192.0.2.80"}]}}
    create(
        kube.service(
            "web", type="LoadBalancer", clusterIP=None, clusterIPs=None, externalIPs=["192.0.2.81"], status=balanced
        )
    )
    objects = seen(source, lambda objects: ip_address("192.0.2.80") in _of_services(objects))
    (service,) = [one for one in objects.service_objects if one.name == "web"]
    assert {"192.0.2.80", "192.0.2.81"} <= set(map(str, service.addresses))


def _of_services(objects: ClusterObjects) -> set:
    return {address for one in objects.service_objects for address in one.addresses}


def test_service_cidrs_are_given_each_once(source, create):
    for name, cidrs in (("one", ["10.97.0.0/24", "fd00:97::/112"]), ("two", ["10.97.0.0/24"])):
        create(kube.service_cidr(name, cidrs))
    objects = seen(source, lambda objects: ip_network("fd00:97::/112") in objects.services)
    assert objects.services.count(ip_network("10.97.0.0/24")) == 1


def test_a_change_is_told_until_it_is_read(source, create):
    source.read()
    assert not source.changed()
    create(kube.node_info(2))
    assert eventually(source.changed)
    assert source.changed()
    assert source.wake is None or select.select([source.wake], [], [], 0)[0]
    seen(source, lambda objects: objects.node_infos != ())
    assert not source.changed()
    assert source.wake is None or not select.select([source.wake], [], [], 0)[0]
    assert source.poll_interval > 0


def test_an_object_that_becomes_unreadable_stays_as_it_was_and_is_told(source, create, opened):
    create(kube.node_info(2))
    before = seen(source, lambda objects: objects.node_infos != ())
    broken = kube.node_info(2)
    broken["spec"]["addresses"] = ["nonsense"]
    create(broken)
    after = seen(source, lambda objects: objects.problems != ())
    assert after.node_infos == before.node_infos
    assert len(after.problems) == 1
    assert "KmeshNodeInfo kmesh-system/n2: spec.addresses[0]: 'nonsense'" in after.problems[0]
    assert opened[0]().read().node_infos == ()
    create(kube.node_info(2, 5))
    assert seen(source, lambda objects: objects.problems == ()).node_infos[0].spi == 5


def test_what_one_node_publishes_every_node_sees(source, opened):
    source.publish(kube.node_info(2, 1))
    assert opened[0]().read().node_infos == (parse(kube.node_info(2, 1)),)


def test_publishing_again_replaces(source):
    source.publish(kube.node_info(2, 1))
    source.publish(kube.node_info(2, 2))
    source.publish(kube.node_info(3, 1))
    assert [(info.name, info.spi) for info in source.read().node_infos] == [("n2", 2), ("n3", 1)]


def test_withdrawing_takes_back_one_node_s_and_may_be_said_twice(source):
    source.publish(kube.node_info(2))
    source.publish(kube.node_info(3))
    source.withdraw("n2")
    source.withdraw("n2")
    assert [info.name for info in source.read().node_infos] == ["n3"]


def test_an_announcement_may_be_taken_back_without_the_report(source):
    source.publish(kube.node_info(2))
    source.publish_status(to_lease(replace(STATUS, node="n2")))
    source.withdraw("n2", status=False)
    assert source.read().node_infos == ()
    assert [one["spec"]["holderIdentity"] for one in source.statuses()] == ["n2"]
    source.withdraw("n2")
    assert source.statuses() == ()


def test_the_secret_is_created_replaced_and_deleted(source, opened):
    source.change_secret(rotate(1))
    assert current(source) == secret.Keyring(1, {1: Key(kube.material(1))})
    source.change_secret(rotate(2))
    assert current(opened[0]()) == secret.Keyring(2, {2: Key(kube.material(2)), 1: Key(kube.material(1))})
    source.change_secret(lambda *_: None)
    source.change_secret(lambda *_: None)
    assert current(source) is None


def test_a_change_of_the_secret_is_decided_on_what_is_announced_now(source, opened):
    source.read()
    opened[0]().publish(kube.node_info(2, 6))
    source.change_secret(rotate(7))
    assert current(source).current == 7


def test_a_change_that_is_refused_by_whoever_decides_changes_nothing(source):
    source.change_secret(rotate(1))

    def refuse(*_):
        raise KmeshBpfError("no")

    with pytest.raises(KmeshBpfError, match="no"):
        source.change_secret(refuse)
    assert current(source).current == 1
    source.change_secret(rotate(2))
    assert current(source).current == 2


def test_of_writers_at_the_same_time_none_undoes_the_other(opened):
    """Each either has its key in the Secret, above those before, or is told that it has not."""
    told: list[KmeshBpfError] = []
    start = threading.Barrier(6)

    def write(mine: ClusterSource, number: int) -> None:
        start.wait(20)
        try:
            mine.change_secret(rotate(number))
        except KmeshBpfError as error:
            told.append(error)

    writers = [threading.Thread(target=write, args=(opened[0](), number)) for number in range(6)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    keyring = current(opened[0]())
    assert keyring.current == 6 - len(told)
    assert len(set(keyring.keys.values())) == min(keyring.current, secret.KEPT + 1)


def test_a_secret_that_somebody_else_stored_is_given_as_it_stands(source, create):
    create(kube.secret(kube.entry(3)))
    seen(source, lambda objects: objects.secret is not None)
    assert current(source).current == 3
    create(kube.secret(b"no JSON"))
    unread = kube.secret(b"no JSON")["data"]
    assert seen(source, lambda objects: objects.secret is not None and objects.secret["data"] == unread)


def test_statuses_are_those_of_all_nodes_and_go_with_the_node(source, opened):
    source.publish_status(lease("n2", progress="1/3"))
    source.publish_status(lease("n2", progress="3/3"))
    opened[0]().publish_status(lease("n3"))
    found = {one["metadata"]["name"]: one for one in source.statuses()}
    assert found.keys() == {"kmesh-ipsec-n2", "kmesh-ipsec-n3"}
    assert found["kmesh-ipsec-n2"]["metadata"]["annotations"] == {"progress": "3/3"}
    assert found["kmesh-ipsec-n3"]["spec"]["holderIdentity"] == "n3"
    source.withdraw("n2")
    assert [one["metadata"]["name"] for one in source.statuses()] == ["kmesh-ipsec-n3"]


def test_a_status_is_no_change_of_what_is_read(source):
    source.read()
    source.publish_status(lease("n2"))
    assert not source.changed()


def test_an_event_may_be_told(source):
    regarding = {"kind": "Node", "name": "n1", "uid": "n1"}
    metadata = {"generateName": "kmesh-", "namespace": "default"}
    event = {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": regarding}
    source.tell(event | {"reason": "KeyRefused", "message": "why", "type": "Warning"})


def test_no_key_shows_in_what_a_source_gives(source):
    source.change_secret(rotate(1))
    found = source.read()
    assert found.secret["data"]["ipSec"][:12] not in repr(found) + repr(source)


def test_a_cluster_in_sight_has_no_age(source):
    source.read()
    source.changed()
    assert source.age() == 0.0


def test_an_event_is_taken_and_changes_nothing_that_is_read(source):
    before = source.read()
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "n1.1", "namespace": "default"}}
    source.tell(event | {"type": "Warning", "reason": "KeyRefused", "message": "m"})
    assert source.read() == before


def test_an_event_told_again_because_the_answer_was_lost_is_done(source):
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "n1.twice", "namespace": "default"}}
    for _ in range(2):
        source.tell(event | {"type": "Warning", "reason": "KeyRefused", "message": "m"})
