# SPDX-License-Identifier: Apache-2.0
"""What is written into a folder of manifests: reports, announcements and the Secret, behind a lock."""

import os
import stat

import pytest
import yaml
from kmesh.cluster.manifests import SECRET_FILE, FolderCluster
from kmesh.errors import ClusterError, ConcurrentChangeError

from kmesh_bpf import ConfigError
from tests.unit.cluster import kube
from tests.unit.cluster.folders import listing, put, refuse


def test_what_a_daemon_publishes_is_a_file_of_its_own_readable_by_all(folder, cluster):
    old = os.umask(0o077)
    try:
        cluster.publish(kube.node_info(2, 3))
    finally:
        os.umask(old)
    path = folder / "kmeshnodeinfo-n2.yaml"
    assert yaml.safe_load(path.read_text()) == kube.node_info(2, 3)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert listing(folder) == [path.name]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "../a",
        "/etc/passwd",
        "A",
        "a_b",
        "-a",
        "a-",
        "a..b",
        ".a",
        "a\n",
        "a\x00b",
        "ä",
        "a" * 64,
        "a." * 127 + "a",
    ],
)
def test_a_name_that_no_node_can_have_never_becomes_a_file(folder, cluster, name):
    manifest = kube.node_info()
    manifest["metadata"]["name"] = name
    with pytest.raises(ConfigError, match="is no node name"):
        cluster.publish(manifest)
    with pytest.raises(ConfigError, match="is no node name"):
        cluster.withdraw(name)
    assert listing(folder) == []


@pytest.mark.parametrize("name", ["n1", "1", "ip-10-0-0-1.eu-central-1.compute.internal", "a" * 63])
def test_every_name_that_a_node_can_have_becomes_one(folder, cluster, name):
    manifest = kube.node_info()
    manifest["metadata"]["name"] = name
    cluster.publish(manifest)
    assert listing(folder) == [f"kmeshnodeinfo-{name}.yaml"]
    assert [info.name for info in cluster.read().node_infos] == [name]


def test_a_write_that_fails_leaves_nothing_behind(folder, cluster):
    (folder / "kmeshnodeinfo-n2.yaml").mkdir()
    with pytest.raises(ClusterError, match=r"cannot write .*kmeshnodeinfo-n2.yaml: Is a directory"):
        cluster.publish(kube.node_info(2))
    with pytest.raises(ClusterError, match=r"cannot delete .*kmeshnodeinfo-n2.yaml"):
        cluster.withdraw("n2")
    assert listing(folder) == ["kmeshnodeinfo-n2.yaml"]


def test_the_secret_is_a_file_for_its_owner_only_and_no_draft_stays(folder, cluster):
    manifest = kube.secret(kube.entry())
    for _ in range(2):
        cluster.change_secret(lambda *_: manifest)
        path = folder / SECRET_FILE
        assert yaml.safe_load(path.read_text()) == manifest
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert listing(folder) == [".kmesh-lock", SECRET_FILE]
        path.chmod(0o644)  # and the next write mends that


def test_the_secret_in_somebody_else_s_file_is_read_and_never_changed(folder, cluster):
    path = put(folder, "mine.yaml", kube.secret(kube.entry()))
    before = path.read_text()
    assert cluster.read().secret == kube.secret(kube.entry())
    with pytest.raises(
        ClusterError, match=r"Secret kmesh-system/kmesh-ipsec stands in mine.yaml, which kmeshctl did not"
    ):
        cluster.change_secret(refuse)
    assert path.read_text() == before
    assert not (folder / SECRET_FILE).exists()


def test_objects_that_somebody_put_into_the_secret_s_file_are_not_lost(folder, cluster):
    put(folder, SECRET_FILE, kube.secret(kube.entry()), kube.pod())
    with pytest.raises(ClusterError, match="holds other objects too"):
        cluster.change_secret(refuse)


@pytest.mark.parametrize("name", [SECRET_FILE, "kmeshnodeinfo-n2.yaml"])
def test_no_new_key_is_made_while_the_versions_in_use_cannot_be_read(folder, cluster, name):
    (folder / name).write_text("a: b: c")
    with pytest.raises(ClusterError, match=rf"{name}: line 1: .*repair or delete it first"):
        cluster.change_secret(refuse)
    (folder / name).rename(folder / "other.yaml")
    cluster.change_secret(lambda *_: None)


def test_who_changes_the_secret_behind_the_lock_wins_and_the_other_is_told(folder, cluster):
    theirs = kube.secret(kube.entry(7))

    def change(before, objects):
        put(folder, SECRET_FILE, theirs)
        return kube.secret(kube.entry(1))

    with pytest.raises(ConcurrentChangeError, match="changed by somebody else at the same time; try again"):
        cluster.change_secret(change)
    assert cluster.read().secret == theirs


def test_no_key_shows_in_what_is_told_about_a_broken_secret_file(folder, cluster):
    material = bytes(range(200, 236))
    good = yaml.safe_dump(kube.secret(kube.entry(1, material)))
    coded = kube.secret(kube.entry(1, material))["data"]["ipSec"]
    for broken in (
        good.replace("ipSec: ", "ipSec: - "),
        good.replace(coded, f"!!int {coded}"),
        good.replace(coded, f'"{coded}'),
    ):
        assert broken != good
        (folder / SECRET_FILE).write_text(broken)
        problems = FolderCluster(folder).read().problems
        assert len(problems) == 1
        assert coded[:8] not in problems[0]


def test_a_lock_that_is_not_given_back_is_told(folder):
    now = [0.0]
    cluster = FolderCluster(folder, lambda: now.__setitem__(0, now[0] + 4) or now[0])
    with FolderCluster(folder)._locked(), pytest.raises(ClusterError, match=r"another kmeshctl has held .*kmesh-lock"):
        cluster.change_secret(refuse)
    cluster.change_secret(lambda *_: None)


def test_a_link_in_place_of_the_lock_is_not_followed(folder, cluster, tmp_path_factory):
    target = tmp_path_factory.mktemp("elsewhere") / "made"
    (folder / ".kmesh-lock").symlink_to(target)
    with pytest.raises(ClusterError, match="cannot write below"):
        cluster.change_secret(refuse)
    assert not target.exists()
