# SPDX-License-Identifier: Apache-2.0
"""How a key comes in, and when: pipes, ages, and names that nobody reads to their end."""

import os
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from kmesh.cluster.manifests import SECRET_FILE
from kmesh.kmeshctl import secrets

from kmesh_bpf import Key
from tests.unit.kmeshctl.keys import HEX, MATERIAL, stored


def test_a_key_may_come_through_a_pipe_and_nobody_waits_for_one_that_does_not(kmeshctl, tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "WRITER_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe")
    said = kmeshctl("secret", "create", "--key-file", str(tmp_path / "pipe"))
    assert said == (2, "", f"kmeshctl: cannot read {tmp_path}/pipe: nobody has written into it for 0.2 s\n")
    monkeypatch.setattr(secrets, "WRITER_SECONDS", 20)
    writer = subprocess.Popen(["sh", "-c", f"echo {HEX} > {tmp_path}/pipe"])
    assert kmeshctl("secret", "create", "--key-file", str(tmp_path / "pipe"))[0] == 0
    writer.wait()
    assert stored(tmp_path).keys == {1: Key(MATERIAL)}


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "w" * 9000, "b"),
        ("explain", "a", "b", "w" * 9000),
        ("w" * 9000,),
        ("status", "-o", "w" * 9000),
        ("status", "--watch", "w" * 9000),
        ("secret", "create", "--key-file", "w" * 9000),
        ("secret", "create", "--key-file", "w" * 3000),
    ],
)
def test_what_is_longer_than_anybody_reads_is_not_said_to_its_end(kmeshctl, arguments):
    status, _, said = kmeshctl(*arguments)
    assert status == 2
    assert said.endswith("\n")
    assert len(said) < 500


def test_a_folder_of_a_name_that_no_path_has_is_refused(kmeshctl):
    said = kmeshctl("status", "--manifests", "w" * 5000, cluster=False)[2]
    assert said.startswith(f"kmeshctl: argument --manifests: {'w' * 64}… is longer than a path can be")


def stored_ago(tmp_path, seconds):
    """Say when the key was stored, as an API server does."""
    made = yaml.safe_load((tmp_path / SECRET_FILE).read_text())
    when = datetime.now(UTC) - timedelta(seconds=seconds)
    made["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    made["metadata"]["managedFields"] = [{"time": when.strftime("%Y-%m-%dT%H:%M:%SZ")}]
    (tmp_path / SECRET_FILE).write_text(yaml.safe_dump(made))


def test_a_key_is_replaced_only_if_it_is_old_enough(kmeshctl, tmp_path):
    create = ("secret", "create", "--if-older-than", "30d")
    assert kmeshctl(*create)[:2] == (0, "key stored: SPI 1, rfc4106(gcm(aes))\n"), "there was none"
    status, _, said = kmeshctl(*create)
    assert (status, said) == (
        1,
        "kmeshctl: the cluster does not say when the key was stored; leave out --if-older-than\n",
    )
    stored_ago(tmp_path, 29 * 86400)
    assert kmeshctl(*create) == (0, "nothing done: the key was stored 29d ago, less than 30d\n", "")
    stored_ago(tmp_path, 31 * 86400)
    assert kmeshctl(*create)[:2] == (0, "key stored: SPI 2, rfc4106(gcm(aes))\n")


@pytest.mark.parametrize("age", ["", "30", "d", "-1d", "0d", "1w", "1.5h", "9" * 5000 + "d", "\u0663d"])
def test_an_age_that_is_none_is_refused(kmeshctl, age):
    status, _, said = kmeshctl("secret", "create", f"--if-older-than={age}")
    assert status == 2
    assert "is no length of time; write 30d, 12h or 45m" in said or len(age) > 100
