# SPDX-License-Identifier: Apache-2.0
"""An API server that does not know our kind, or knows it in a version that is not ours."""

import pytest

from kmesh_bpf import KmeshBpfError
from tests.contract.test_cluster_source import rotate, seen
from tests.lab import objects
from tests.lab.apiserver import ApiServer
from tests.unit.cluster import kube


def test_a_server_that_serves_our_kind_in_another_version_only_is_told_and_nobody_chooses_an_spi(
    server, cable, opening_by_cable
):
    objects.put(server, kube.node_info(2, spi=7))
    source = opening_by_cable()
    source.read()
    objects.serve_another_version(server)
    try:
        words = "serves it in other versions than kmesh.net/v1alpha1; apply deploy/base/crd.yaml"
        cable.cut()
        found = seen(source, lambda objects: any(words in one for one in objects.problems))
        assert [info.spi for info in found.node_infos] == [7]
        with pytest.raises(KmeshBpfError, match=words):
            source.change_secret(rotate(1))
    finally:
        objects.serve_our_version(server)
    seen(source, lambda objects: objects.problems == ())
    source.change_secret(rotate(1))
    assert '"spi":8' in server.kubectl(
        "get", "secret", "kmesh-ipsec", "-n", "kmesh-system", "-o", "go-template={{.data.ipSec | base64decode}}"
    )


def test_without_the_crd_the_sentence_says_what_to_apply_and_the_first_key_can_be_made(programs, opening, tmp_path):
    with ApiServer(tmp_path, programs) as server:
        objects.put(server, kube.namespace("kmesh-system"))
        source = opening(server.kubeconfig("admin", server.token))
        assert any("does not know KmeshNodeInfo" in problem for problem in source.read().problems)
        source.change_secret(rotate(1))
        assert seen(source, lambda objects: objects.secret is not None)
