# SPDX-License-Identifier: Apache-2.0
"""What several of these tests need and takes a moment to make."""

import subprocess
from pathlib import Path

import pytest
from kmesh.cluster.kubernetes import watch
from kmesh.cluster.manifests import FolderCluster


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A certificate and its key, in PEM."""
    folder = tmp_path_factory.mktemp("pair")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=me", "-addext", "subjectAltName=DNS:api.lab", "-out", folder / "me.crt", "-keyout", folder / "me.key"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "me.crt", folder / "me.key"


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path


@pytest.fixture
def cluster(folder) -> FolderCluster:
    return FolderCluster(folder)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(watch, "EMPTY_SECONDS", 0.01)
    monkeypatch.setattr(watch, "FIRST_RETRY", 0.05)
