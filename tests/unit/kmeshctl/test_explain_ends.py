# SPDX-License-Identifier: Apache-2.0
"""Ends that are no pods: Services with an answer for each endpoint, nodes, strangers; and names that are nearly right."""

import json

import pytest
import yaml
from kmesh.cluster.endpoints import Endpoint, endpoints
from kmesh.cluster.manifests import FolderCluster
from kmesh.cluster.snapshot import MODE_LABEL

from kmesh_bpf import ConfigError
from tests.unit.cluster import kube
from tests.unit.kmeshctl.test_explain import API, BASE, NAMESPACE, NOW, ONE, OTHER, WEB
from tests.unit.kmeshctl.test_status import Source

PLAIN = kube.pod("plain", 2, 12, labels={MODE_LABEL: "none"})
CLUSTER = (*BASE, NAMESPACE, WEB, API, PLAIN, kube.service("cart"), kube.node(3))


def part(*addresses, name="cart-1", service="cart", **conditions):
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [one], "conditions": conditions} for one in addresses],
    }


def ask(*argv, slices=(), manifests=CLUSTER):
    import io  # noqa: PLC0415

    from kmesh.kmeshctl.arguments import parser  # noqa: PLC0415
    from kmesh.kmeshctl.explain import run  # noqa: PLC0415

    out = io.StringIO()
    source = Source(manifests, (ONE, OTHER), slices=slices)
    return run(parser().parse_args(["explain", *argv]), source, out, clock=lambda: NOW), out.getvalue()


def ways(*argv, **cluster):
    code, text = ask(*argv, "-o", "json", **cluster)
    found = json.loads(text)
    return code, {f"{way['source']} -> {way['destination']}": way["verdict"] for way in found["ways"]}, found


BOTH = {"10.244.1.10 -> 10.244.2.11": "encrypted", "10.244.2.11 -> 10.244.1.10": "encrypted"}


@pytest.mark.parametrize("end", ["svc/cart", "service/cart", "svc/default/cart", "10.96.0.10", "fd00:96::a"])
def test_a_service_named_or_by_its_address_is_answered_for_each_endpoint_both_ways(end):
    code, found, answer = ways("web", end, slices=(part("10.244.2.11"),))
    assert (code, found) == (0, BOTH)
    assert answer["ends"][1]["kind"] == "service"
    assert [one["name"] for one in answer["endpoints"]["default/cart"]] == ["default/api"]


def test_of_several_endpoints_each_has_its_answer_and_one_in_clear_is_enough_for_no():
    code, found, _ = ways("web", "svc/cart", slices=(part("10.244.2.11"), part("10.244.2.12", name="cart-2")))
    assert code == 1
    assert found == BOTH | {"10.244.1.10 -> 10.244.2.12": "clear", "10.244.2.12 -> 10.244.1.10": "clear"}
    text = ask("web", "svc/cart", slices=(part("10.244.2.11", "10.244.2.12"),))[1]
    assert "\n  endpoint default/api (10.244.2.11) on n2: managed, " in text
    assert "\n  endpoint default/plain (10.244.2.12) on n2: not managed, " in text


def test_endpoints_that_get_nothing_are_named_and_none_at_all_is_no():
    code, found, answer = ways("web", "svc/cart", slices=(part("10.244.2.11"), part("10.244.2.12", ready=False)))
    assert (code, found) == (0, BOTH)
    assert answer["notes"] == ["Service default/cart gives nothing to endpoints that are not ready: 10.244.2.12"]
    code, found, answer = ways("web", "svc/cart")
    assert (code, found) == (1, {})
    assert answer["notes"][0].startswith("Service default/cart has no endpoint that is ready")


def test_slices_of_another_service_and_of_another_shape_count_for_nothing():
    slices = (part("10.244.2.11", service="other"), {"kind": "EndpointSlice", "endpoints": 7}, part("not.an.address"))
    assert ways("web", "svc/cart", slices=slices)[1] == {}
    assert endpoints([{"endpoints": 7}, part("nonsense"), {"endpoints": [{"addresses": []}]}]) == ()


def test_an_endpoint_that_does_not_say_is_ready_and_one_of_two_slices_that_says_so_is_enough():
    found = endpoints([part("10.0.0.2", ready=False), part("10.0.0.2"), part("10.0.0.1", ready=None)])
    assert [(str(one.address), one.ready) for one in found] == [("10.0.0.1", True), ("10.0.0.2", True)]
    assert isinstance(found[0], Endpoint)


def test_endpoints_outside_the_cluster_are_strangers():
    _, found, answer = ways("web", "svc/cart", slices=(part("192.0.2.9"),))
    assert found == {"10.244.1.10 -> 192.0.2.9": "clear", "192.0.2.9 -> 10.244.1.10": "clear"}
    assert answer["ways"][1]["reason"] == "nobody here has that address: what it sends comes as it was sent"


def test_the_way_back_of_an_address_that_no_service_has_is_no_matter_of_daemons():
    _, _, answer = ways("web", "10.96.0.99", "--service-cidr", "10.96.0.0/12")
    assert [way["verdict"] for way in answer["ways"]] == ["unknown", "unknown"]
    assert all("daemon" not in way["reason"] for way in answer["ways"])


def test_what_stands_before_a_name_says_what_it_is():
    assert ways("pod/web", "pod/default/api")[0] == 0
    code, _, answer = ways("web", "node/n2")
    assert (code, answer["ends"][1]["kind"], answer["ends"][1]["node"]) == (1, "node", "n2")
    assert "node n2 (10.10.0.2, fd00:10::2): it is a node's own address" in ask("web", "node/n2")[1]


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("wbe", "no pod default/wbe is known; .*; did you mean default/web"),
        ("shop/web", "no pod shop/web is known; .*; did you mean default/web"),
        ("svc/crat", "no Service default/crat is known; .*; did you mean default/cart"),
        ("node/n22", r"no node n22 is known; .*; did you mean n2\b"),
        ("zzzzzz", r"no pod default/zzzzzz is known; give POD, .* or an address$"),
    ],
)
def test_a_name_that_there_is_not_is_answered_with_those_that_are_near(end, words):
    with pytest.raises(ConfigError, match=words):
        ask("web", end)


def test_wide_adds_what_the_nodes_on_the_way_report():
    lines = ask("web", "api", "-o", "wide")[1].split("\n\n")[-1].splitlines()
    assert lines[0].split() == ["NODE", "READY", "SPI", "SPI", "OUT", "MODE", "DROPS", "AGE"]
    assert [line.split()[0] for line in lines[1:]] == ["n1", "n2"]


def test_a_folder_gives_the_slices_of_a_service_wherever_they_stand(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([part("10.0.0.1"), part("10.0.0.2", service="other")]))
    (tmp_path / "b.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [part("10.0.0.3")]}))
    (tmp_path / "c.yaml").write_text("{")
    found = endpoints(FolderCluster(tmp_path).endpoint_slices("default", "cart"))
    assert [str(one.address) for one in found] == ["10.0.0.1", "10.0.0.3"]
    assert FolderCluster(tmp_path).endpoint_slices("shop", "cart") == ()
