"""An API server that deploy/base was applied to, by kubectl as an operator does it."""

from collections.abc import Iterator

import pytest
import yaml

from tests.lab.apiserver import ROOT, ApiServer


@pytest.fixture(scope="session")
def applied(tmp_path_factory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("deploy"), ApiServer.available()) as server:
        apply(server)
        server.kubectl("wait", "--for=condition=Established", "crd/kmeshnodeinfos.kmesh.net", "--timeout=60s")
        yield server


def rendered(server: ApiServer) -> str:
    return server.kubectl("kustomize", str(ROOT / "deploy/base"))


def apply(server: ApiServer) -> str:
    return server.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=rendered(server))


def manifests(server: ApiServer, *kinds: str) -> list[dict]:
    return [one for one in yaml.safe_load_all(rendered(server)) if one["kind"] in kinds]
