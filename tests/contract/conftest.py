# SPDX-License-Identifier: Apache-2.0
"""The folder cluster, for the promises of every cluster source."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.source import ClusterSource


@pytest.fixture
def opened(tmp_path: Path) -> tuple[Callable[[], ClusterSource], Callable[[dict], None]]:
    """Give how to open the cluster, and how somebody else (kubectl) creates or replaces an object in it."""

    def create(manifest: dict) -> None:
        name = f"{manifest['kind']}-{manifest['metadata']['name']}".lower()
        (tmp_path / f".{name}").write_text(yaml.safe_dump(manifest))
        (tmp_path / f".{name}").rename(tmp_path / f"{name}.yaml")

    return lambda: FolderCluster(tmp_path), create
