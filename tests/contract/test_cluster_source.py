"""What every ClusterSource promises, whatever is behind it; a new one joins by a function in SOURCES."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from kmesh.cluster import secret
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.objects import parse
from kmesh.cluster.source import ClusterSource

from kmesh_bpf import Key, KmeshBpfError
from tests.unit.cluster import kube


def folder(tmp_path: Path) -> tuple[Callable[[], ClusterSource], Callable[[dict], None]]:
    def create(manifest: dict) -> None:
        name = f"{manifest['kind']}-{manifest['metadata']['name']}".lower()
        (tmp_path / f".{name}").write_text(yaml.safe_dump(manifest))
        (tmp_path / f".{name}").rename(tmp_path / f"{name}.yaml")

    return lambda: FolderCluster(tmp_path), create


SOURCES = {"folder": folder}


@pytest.fixture(params=SOURCES)
def opened(request, tmp_path):
    """Give how to open the cluster, and how somebody else (kubectl) creates or replaces an object in it."""
    return SOURCES[request.param](tmp_path)


@pytest.fixture
def source(opened) -> ClusterSource:
    return opened[0]()


@pytest.fixture
def create(opened) -> Callable[[dict], None]:
    return opened[1]


def rotate(number: int):
    def change(before, objects):
        held = secret.parse_keys(before) if before is not None else None
        return secret.render(
            secret.next_keys(held, (info.spi for info in objects.node_infos), Key(bytes([number]) * 36))
        )

    return change


def current(source: ClusterSource) -> secret.Keyring | None:
    found = source.read().secret
    return secret.parse_keys(found) if found is not None else None


def test_an_empty_cluster_is_empty_and_has_no_problems(source):
    objects = source.read()
    assert (objects.namespaces, objects.nodes, objects.pods, objects.node_infos) == ((), (), (), ())
    assert (objects.secret, objects.problems) == (None, ())


def test_objects_of_every_kind_are_given_as_parsed(source, create):
    manifests = [kube.namespace(), kube.node(), kube.pod(), kube.node_info(3)]
    for manifest in manifests:
        create(manifest)
    objects = source.read()
    found = (*objects.namespaces, *objects.nodes, *objects.pods, *objects.node_infos)
    assert found == tuple(parse(manifest) for manifest in manifests)


def test_a_change_is_told_until_it_is_read(source, create):
    source.read()
    assert not source.changed()
    create(kube.pod())
    assert source.changed()
    assert source.changed()
    source.read()
    assert not source.changed()
    assert source.poll_interval > 0


def test_an_object_that_becomes_unreadable_stays_as_it_was_and_is_told(source, create):
    create(kube.pod())
    before = source.read()
    create(kube.pod(addresses=["nonsense"]))
    after = source.read()
    assert after.pods == before.pods
    assert len(after.problems) == 1
    assert "Pod default/web: status.podIPs[0].ip: 'nonsense'" in after.problems[0]


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


def test_the_secret_is_created_replaced_and_deleted(source, opened):
    source.change_secret(rotate(1))
    assert current(source) == secret.Keyring(1, {1: Key(b"\1" * 36)})
    source.change_secret(rotate(2))
    assert current(opened[0]()) == secret.Keyring(2, {2: Key(b"\2" * 36), 1: Key(b"\1" * 36)})
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

    def write(number: int) -> None:
        mine = opened[0]()
        start.wait()
        try:
            mine.change_secret(rotate(number))
        except KmeshBpfError as error:
            told.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    keyring = current(opened[0]())
    assert keyring.current == 6 - len(told)
    assert len(set(keyring.keys.values())) == min(keyring.current, secret.KEPT + 1)


def test_a_secret_that_somebody_else_stored_is_given_as_it_stands(source, create):
    create(kube.secret(kube.entry(3)))
    assert current(source).current == 3
    create(kube.secret(b"no JSON"))
    assert source.read().secret == kube.secret(b"no JSON")


def test_no_key_shows_in_what_a_source_gives(source):
    source.change_secret(rotate(1))
    found = source.read()
    assert found.secret["data"]["ipSec"][:12] not in repr(found) + repr(source)
