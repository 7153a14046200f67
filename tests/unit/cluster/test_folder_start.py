# SPDX-License-Identifier: Apache-2.0
"""A folder as whoever starts now finds it: what others have read from it before may still be in force."""

import pytest
import yaml
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.source import read_whole
from kmesh.errors import ClusterError

from tests.unit.cluster import kube


def put(folder, name, *manifests) -> None:
    (folder / name).write_text(yaml.safe_dump_all(manifests))


@pytest.mark.parametrize("content", ["", "kind: Pod\nmetadata: name: a\n"], ids=["empty", "broken"])
def test_with_a_file_that_cannot_be_read_a_cluster_is_not_known_until_it_can(tmp_path, content):
    put(tmp_path, "a.yaml", kube.pod("a"))
    running = FolderCluster(tmp_path)
    running.read()
    (tmp_path / "a.yaml").write_text(content)
    put(tmp_path, "b.yaml", kube.pod("b"))
    starting = FolderCluster(tmp_path)
    assert [pod.name for pod in running.read().pods] == ["a", "b"]
    assert not starting.read().complete
    with pytest.raises(ClusterError, match=r"a\.yaml: "):
        read_whole(starting)
    put(tmp_path, "a.yaml", kube.pod("a"))
    assert starting.read().complete


def test_a_new_file_that_cannot_be_read_does_not_stop_who_knew_the_cluster_before(tmp_path):
    put(tmp_path, "a.yaml", kube.pod("a"))
    running = FolderCluster(tmp_path)
    assert running.read().complete
    (tmp_path / "b.yaml").write_text("{")
    found = running.read()
    assert found.complete
    assert len(found.problems) == 1


def test_a_folder_that_cannot_be_listed_is_not_known(tmp_path, monkeypatch):
    put(tmp_path, "a.yaml", kube.pod("a"))

    def scandir(path):
        raise PermissionError(13, "Permission denied")

    cluster = FolderCluster(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", scandir)
        assert not cluster.read().complete
    assert cluster.read().complete


def test_what_nodes_and_kmeshctl_write_counts_before_a_dump_of_the_cluster_beside_it(tmp_path):
    cluster = FolderCluster(tmp_path)
    put(tmp_path, "objects.yaml", kube.node_info(2, 1))
    put(tmp_path, "zone.yaml", kube.secret(kube.entry(1)))
    put(tmp_path, "secret-kmesh-ipsec.yaml", kube.secret(kube.entry(2)))
    cluster.publish(kube.node_info(2, 9))
    found = cluster.read()
    assert [info.spi for info in found.node_infos] == [9]
    assert found.secret == kube.secret(kube.entry(2))
    assert len(found.problems) == 2
