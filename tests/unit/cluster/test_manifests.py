# SPDX-License-Identifier: Apache-2.0
import json
import logging
import os
import time
from pathlib import Path

import pytest
import yaml
from kmesh.cluster.manifests import FolderCluster
from kmesh.errors import ClusterError

from kmesh_bpf import ConfigError
from tests.unit.cluster import kube
from tests.unit.cluster.folders import names, put, refuse


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        FolderCluster(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is no folder"):
        FolderCluster(tmp_path / "file")


def test_yaml_yml_and_json_are_read_and_nothing_else(folder, cluster):
    for name in ("a.yaml", "b.yml", "c.json", "d.txt", ".e.yaml", "f.yaml~"):
        put(folder, name, kube.pod(name[:1].replace(".", "e")))
    (folder / "g.yaml").mkdir()
    (folder / "h.yaml").symlink_to("nowhere")
    os.mkfifo(folder / "i.yaml")
    assert names(cluster.read()) == ["a", "b", "c"]
    assert cluster.read().problems == ()


def test_files_of_a_mounted_configmap_are_symbolic_links(folder, cluster):
    (folder / "..data").mkdir()
    put(folder / "..data", "pod.yaml", kube.pod("a"))
    (folder / "pod.yaml").symlink_to("..data/pod.yaml")
    assert names(cluster.read()) == ["a"]


def test_several_documents_and_lists_are_read(folder, cluster):
    put(folder, "all.yaml", kube.pod("a"), {"apiVersion": "v1", "kind": "List", "items": [kube.pod("b"), kube.node()]})
    assert names(cluster.read()) == ["a", "b"]
    assert len(cluster.read().nodes) == 1


def test_changed_tells_of_files_that_come_change_and_go(folder, cluster):
    assert not cluster.changed()
    for act in (
        lambda: put(folder, "a.yaml", kube.pod("a")),
        lambda: put(folder, "a.yaml", kube.pod("b")),
        lambda: put(folder, "a.yaml", kube.pod("b")),
        lambda: (folder / "a.yaml").rename(folder / "b.yaml"),
        (folder / "b.yaml").unlink,
    ):
        act()
        assert cluster.changed()
        cluster.read()
        assert not cluster.changed()


def test_only_what_changed_is_read_again(folder, cluster, monkeypatch):
    for name in ("a", "b", "c"):
        put(folder, f"{name}.yaml", kube.pod(name))
    cluster.read()
    put(folder, "b.yaml", kube.pod("d"))
    opened = []
    original = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(path.name) or original(path, *rest))
    assert names(cluster.read()) == ["a", "d", "c"]
    assert opened == ["b.yaml"]


def test_a_broken_file_is_told_with_its_line_and_leaves_its_last_good_content(folder, cluster):
    put(folder, "a.yaml", kube.pod("a"))
    put(folder, "b.yaml", kube.pod("b"))
    cluster.read()
    (folder / "a.yaml").write_text("kind: Pod\nmetadata: name: a\n")
    put(folder, "b.yaml", kube.pod("c"))
    objects = cluster.read()
    assert names(objects) == ["a", "c"]
    assert objects.problems == (
        "a.yaml: line 2: mapping values are not allowed in this context; its last good content stays in force",
    )
    assert cluster.read().problems == objects.problems  # as long as it lasts
    put(folder, "a.yaml", kube.pod("a"))
    assert cluster.read().problems == ()


def test_a_broken_json_file_is_told_with_its_line(folder, cluster):
    (folder / "a.json").write_text('{"kind": "Pod",\n "metadata": }')
    assert cluster.read().problems == ("a.json: line 2: Expecting value",)


def test_a_broken_object_is_told_by_file_and_name_and_leaves_its_last_good_version(folder, cluster):
    put(folder, "a.yaml", kube.pod("a"), kube.pod("b", 1, 11))
    cluster.read()
    broken = kube.pod("a", addresses=["nonsense"])
    put(folder, "a.yaml", broken, kube.pod("b", 1, 12), kube.pod("c", addresses=["nonsense"]))
    objects = cluster.read()
    assert [(pod.name, str(pod.addresses[0])) for pod in objects.pods] == [("a", "10.244.1.10"), ("b", "10.244.1.12")]
    assert [problem.split(":")[:2] for problem in objects.problems] == [
        ["a.yaml", " Pod default/a"],
        ["a.yaml", " Pod default/c"],
    ]


def test_an_object_taken_out_of_a_file_is_gone_whatever_else_is_broken_in_it(folder, cluster):
    put(folder, "a.yaml", kube.pod("a"), kube.pod("b"))
    cluster.read()
    put(folder, "a.yaml", kube.pod("a", addresses=["nonsense"]))
    assert names(cluster.read()) == ["a"]


def test_a_file_of_no_bytes_is_one_that_somebody_is_about_to_write(folder, cluster):
    put(folder, "a.yaml", kube.pod("a"))
    assert cluster.read().problems == ()
    (folder / "a.yaml").write_text("")
    objects = cluster.read()
    assert names(objects) == ["a"]
    assert objects.problems == (
        "a.yaml: it is empty; delete it to delete its objects; its last good content stays in force",
    )
    (folder / "a.yaml").write_text("# nothing left\n")
    assert cluster.read() == FolderCluster(folder).read()


def test_a_file_that_changes_while_it_is_read_is_read_again(folder, cluster, monkeypatch):
    path = put(folder, "a.yaml", kube.pod("a"))
    cluster.read()
    put(folder, "a.yaml", kube.pod("b"))
    original = os.fstat
    looks = []

    def fstat(descriptor):
        status = original(descriptor)
        looks.append(status)
        if len(looks) == 1:
            with path.open("a") as file:
                file.write("---\n" + yaml.safe_dump(kube.pod("c")))
        return status

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        objects = cluster.read()
    assert names(objects) == ["a"]
    assert objects.problems == ("a.yaml: it is being written; its last good content stays in force",)
    assert cluster.changed()
    assert names(cluster.read()) == ["b", "c"]


def test_the_same_object_in_two_files_is_told_and_the_later_name_counts(folder, cluster):
    put(folder, "b.yaml", kube.pod("web", 1, 20))
    put(folder, "a.yaml", kube.pod("web", 1, 10))
    objects = cluster.read()
    assert [str(pod.addresses[0]) for pod in objects.pods] == ["10.244.1.20"]
    assert objects.problems == ("b.yaml: Pod default/web stands in another file too; this one counts",)


def test_the_same_object_twice_in_a_file_is_told_and_the_last_one_counts(folder, cluster):
    put(folder, "a.yaml", kube.pod("web", 1, 10), kube.pod("web", 1, 20))
    objects = cluster.read()
    assert [str(pod.addresses[0]) for pod in objects.pods] == ["10.244.1.20"]
    assert objects.problems == ("a.yaml: Pod default/web stands in it twice; the last one counts",)


def test_when_the_folder_is_away_its_last_content_stays_in_force(folder, cluster):
    put(folder, "a.yaml", kube.pod("a"))
    cluster.read()
    away = folder.rename(folder.with_name("away"))
    assert cluster.changed()
    objects = cluster.read()
    assert names(objects) == ["a"]
    assert objects.problems == (f"{folder} cannot be read: No such file or directory; its last content stays in force",)
    assert not cluster.changed()
    with pytest.raises(ClusterError, match="cannot"):
        cluster.publish(kube.node_info())
    with pytest.raises(ClusterError, match="cannot"):
        cluster.change_secret(refuse)
    put(away, "a.yaml", kube.pod("b"))
    away.rename(folder)
    assert cluster.changed()
    assert names(cluster.read()) == ["b"]
    assert cluster.read().problems == ()


def test_looking_for_changes_is_cheap_and_reading_again_parses_nothing(folder, cluster):
    for number in range(500):
        put(folder, f"pod-{number}.json", kube.pod(f"p{number}"))
    cluster.read()
    start = time.process_time()
    for _ in range(10):
        assert not cluster.changed()
    assert (time.process_time() - start) / 10 < 0.05  # 3 ms where this was written
    start = time.process_time()
    cluster.read()
    assert time.process_time() - start < 0.1


def test_the_age_is_how_long_the_folder_could_not_be_listed(folder):
    now = [100.0]
    cluster = FolderCluster(folder, lambda: now[0])
    cluster.read()
    now[0] = 150.0
    assert cluster.age() == 0.0
    away = folder.rename(folder.with_name("away"))
    cluster.changed()
    now[0] = 155.0
    cluster.read()
    assert cluster.age() == 5.0
    away.rename(folder)
    cluster.changed()
    assert cluster.age() == 0.0


def test_an_event_goes_to_the_log_by_its_type(cluster, caplog):
    with caplog.at_level(logging.INFO, "kmesh"):
        cluster.tell({"type": "Warning", "reason": "KeyRefused", "message": "no JSON"})
        cluster.tell({"type": "Normal", "reason": "EncryptionReady", "message": "2 of 2 peers"})
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "event KeyRefused: no JSON"),
        ("INFO", "event EncryptionReady: 2 of 2 peers"),
    ]


def test_what_is_no_regular_file_is_not_opened_and_nothing_waits_for_it(folder, cluster):
    put(folder, "a.yaml", kube.pod("a"))
    cluster.read()
    (folder / "a.yaml").unlink()
    os.mkfifo(folder / "a.yaml")
    (folder / "b.yaml").symlink_to("/dev/zero")
    put(folder, "c.yaml", kube.pod("c"))
    assert names(cluster.read()) == ["c"]


def test_a_file_that_becomes_a_fifo_behind_the_look_is_told_and_its_content_stays(folder, cluster, monkeypatch):
    path = put(folder, "a.yaml", kube.pod("a"))
    cluster.read()
    put(folder, "a.yaml", kube.pod("b"))
    looked = cluster._look()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(cluster, "_look", lambda: looked)
    objects = cluster.read()
    assert names(objects) == ["a"]
    assert objects.problems == ("a.yaml: cannot be read: it is no regular file; its last good content stays in force",)


@pytest.mark.parametrize(("suffix", "size"), [("yaml", "8 MiB"), ("yml", "8 MiB"), ("json", "32 MiB")])
def test_a_file_of_eight_gigabytes_is_told_and_not_read(folder, cluster, suffix, size):
    put(folder, f"a.{suffix}", kube.pod("a"))
    put(folder, "b.yaml", kube.pod("b"))
    cluster.read()
    os.truncate(folder / f"a.{suffix}", 8 << 30)
    objects = cluster.read()
    assert names(objects) == ["a", "b"]
    assert objects.problems == (
        f"a.{suffix}: cannot be read: it is larger than {size}; split it; its last good content stays in force",
    )


def test_a_report_that_is_a_fifo_a_device_or_too_large_is_as_good_as_none(folder, cluster):
    os.mkfifo(folder / "lease-kmesh-ipsec-n1.yaml")
    (folder / "lease-kmesh-ipsec-n2.yaml").symlink_to("/dev/zero")
    (folder / "lease-kmesh-ipsec-n3.yaml").touch()
    os.truncate(folder / "lease-kmesh-ipsec-n3.yaml", 8 << 30)
    put(folder, "lease-kmesh-ipsec-n4.yaml", {"kind": "Lease"})
    assert cluster.statuses() == ({"kind": "Lease"},)


def test_one_object_s_fault_leaves_the_others_of_its_file_alone(folder, cluster):
    put(folder, "z.json", {"kind": "List", "items": [kube.pod("a"), kube.node_info(2), kube.pod("b")]})
    text = (folder / "z.json").read_text()
    (folder / "z.json").write_text(text.replace(f'"bootID": "{kube.INCARNATION}"', '"bootID": "\\ud800"'))
    odd = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {}}
    digits = json.dumps(odd).replace("{}", "9" * 5000)
    (folder / "y.json").write_text(json.dumps(kube.pod("c")) + digits)
    (folder / "x.yaml").write_text(yaml.safe_dump(kube.pod("d")) + "---\n" + digits)
    labelled = yaml.safe_dump(kube.namespace("odd")).replace("kubernetes.io/metadata.name: odd", "a: 0x" + "f" * 5000)
    (folder / "w.yaml").write_text(yaml.safe_dump(kube.pod("e")) + "---\n" + labelled)
    objects = cluster.read()
    assert sorted(names(objects)) == ["a", "b", "c", "d", "e"]
    assert objects.problems == (
        "w.yaml: Namespace odd: metadata.labels: 'a' has 5002 characters, more than 63",
        "z.json: KmeshNodeInfo kmesh-system/n2: spec.bootID holds half a character (a lone surrogate)",
    )


@pytest.mark.parametrize("name", [b"a\nb.yaml", b"\xff.yaml", b"\x1b[2J.yaml"])
def test_a_file_s_name_can_be_written_wherever_a_sentence_about_it_goes(folder, cluster, name):
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("a: b: c")
    (problem,) = cluster.read().problems
    assert problem.isprintable()
