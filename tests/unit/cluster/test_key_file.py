# SPDX-License-Identifier: Apache-2.0
import base64
import json
import os

import pytest
from kmesh.cluster.key_file import KeyFile
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.secret import Keyring, parse_keys, render

from kmesh_bpf import Key
from tests.unit.cluster import kube


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ipSec"


@pytest.fixture
def source(tmp_path, path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    return KeyFile(FolderCluster(folder), path)


def write(path, spi):
    path.write_text(json.dumps(kube.entry(spi)))


def test_the_key_comes_from_the_file_and_not_from_the_secret(source, path):
    write(path, 3)
    source.change_secret(lambda *_: kube.secret(kube.entry(9)))
    found = source.read()
    assert (parse_keys(found.secret).current, found.problems, found.complete) == (3, (), True)


def test_a_new_content_is_a_change_until_it_is_read(source, path):
    write(path, 1)
    source.read()
    assert not source.changed()
    write(path, 10)
    assert source.changed()
    assert parse_keys(source.read().secret).current == 10
    assert not source.changed()


def test_a_file_that_goes_leaves_its_key_in_force_and_is_told(source, path):
    write(path, 1)
    source.read()
    path.unlink()
    assert source.changed()
    found = source.read()
    assert parse_keys(found.secret).current == 1
    assert found.complete
    assert found.problems == (f"the key file {path} cannot be read: No such file or directory; the last key stays",)


def test_without_a_key_there_never_was_the_cluster_is_not_complete(source):
    assert not source.read().complete


def test_a_file_that_holds_no_key_is_refused_by_whoever_reads_it(source, path):
    path.write_text("no JSON")
    with pytest.raises(Exception, match="it is not JSON"):
        parse_keys(source.read().secret)


def test_the_older_keys_and_the_history_of_a_mounted_secret_are_read_beside_it(source, path):
    keyring = Keyring(2, {2: Key(kube.material(2)), 1: Key(kube.material(1))}, ("0" * 64,))
    for name, coded in render(keyring)["data"].items():
        path.with_name(name).write_bytes(base64.b64decode(coded))
    read = parse_keys(source.read().secret)
    assert (read, read.used) == (keyring, keyring.used)
    assert not source.changed()
    path.with_name("ipSecPrevious").unlink()
    assert source.changed()
    assert parse_keys(source.read().secret) == Keyring(2, {2: Key(kube.material(2))})


@pytest.mark.parametrize("name", ["ipSec", "ipSecUsed"])
@pytest.mark.parametrize("kind", ["fifo", "device", "large"])
def test_what_is_no_file_of_a_key_is_told_at_once_and_the_last_key_stays(source, path, name, kind):
    write(path, 1)
    source.read()
    odd = path.with_name(name)
    odd.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "device":
        odd.symlink_to("/dev/zero")
    else:
        odd.touch()
        os.truncate(odd, 8 << 30)
    found = source.read()
    assert parse_keys(found.secret).current == 1
    why = "larger than 128 KiB" if kind == "large" else "no regular file"
    where = "" if name == "ipSec" else "has a neighbour, ipSecUsed, that "
    assert found.problems == (f"the key file {path} {where}cannot be read: it is {why}; the last key stays",)


def test_a_mounted_secret_is_links_to_a_folder_that_is_replaced(source, path):
    """As kubelet does it: ipSec -> ..data/ipSec, ..data -> a folder of a time."""
    for number, name in ((1, "..first"), (2, "..second")):
        (path.parent / name).mkdir()
        write(path.parent / name / "ipSec", number)
    data = path.parent / "..data"
    data.symlink_to("..first")
    path.symlink_to("..data/ipSec")
    assert parse_keys(source.read().secret).current == 1
    new = path.parent / "..data_tmp"
    new.symlink_to("..second")
    new.rename(data)
    assert source.changed()
    assert parse_keys(source.read().secret).current == 2
