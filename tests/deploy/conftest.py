# SPDX-License-Identifier: Apache-2.0
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


def roles(file: str) -> list[dict]:
    text = (ROOT / "deploy/base" / file).read_text()
    return [one for one in yaml.safe_load_all(text) if one["kind"] in ("Role", "ClusterRole")]


def without(role: dict, rule: int, resource: str, verb: str) -> dict:
    """Give a role without one verb on one resource; the rule's other resources keep it."""
    rules = [dict(one) for one in role["rules"]]
    whole = rules.pop(rule)
    others = [one for one in whole["resources"] if one != resource]
    less = [one for one in whole["verbs"] if one != verb]
    rules += [{**whole, "resources": others}] if others else []
    rules += [{**whole, "resources": [resource], "verbs": less}] if less else []
    return {**role, "rules": rules}


def cases(file: str) -> list:
    """Give a parameter for each verb on each resource: the role's number, the rule's, resource, verb."""
    return [
        pytest.param(number, rule, resource, verb, id=f"{resource}-{verb}")
        for number, role in enumerate(roles(file))
        for rule, one in enumerate(role["rules"])
        for resource in one["resources"]
        for verb in one["verbs"]
    ]


def put_role(server, role: dict) -> None:
    server.kubectl("replace", "-f", "-", stdin=yaml.safe_dump(role))
