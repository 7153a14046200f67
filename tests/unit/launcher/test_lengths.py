# SPDX-License-Identifier: Apache-2.0
"""No field's length ends a daemon or a kmeshctl: whatever has a fixed size somewhere is refused by name, or fits."""

import copy
import io
import json
import tempfile
from ipaddress import ip_address
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from kmesh.cluster.status import LARGEST_REPORT
from kmesh.kmeshctl.cli import main

from kmesh_bpf import KmeshBpfError
from kmesh_bpf.core.boot_guard import installation
from tests.unit.amount import examples
from tests.unit.cluster import kube
from tests.unit.launcher.standin import Node

KEYED = [kube.entry(2, kube.material(3)), [kube.entry(1, kube.material(4))]]
SPECIMENS = {
    "own Node": kube.node(1),
    "own KmeshNodeInfo": kube.node_info(1),
    "a peer's Node": kube.node(2),
    "a peer's KmeshNodeInfo": kube.node_info(2, 1, **{"kmesh.net/ipsec-replay-window": "64"}),
    "own Pod": kube.pod("web1", 1, 10, labels={"app": "x"}, annotations={"a": "b"}, created="2026-01-01T00:00:00Z"),
    "a peer's Pod": kube.pod("web2", 2, 10, labels={"istio.io/dataplane-mode": "Kmesh"}, phase="Running"),
    "Namespace": kube.namespace("default", **{"istio.io/dataplane-mode": "Kmesh"}),
    "Service": kube.service(),
    "ServiceCIDR": kube.service_cidr(),
    "Secret": kube.secret(*KEYED),
}
THIRD = tuple(map(ip_address, ("10.244.3.10", "fd00:244:3::a")))
LENGTHS = (0, 1, 7, 15, 16, 35, 36, 37, 39, 40, 41, 63, 64, 65, 253, 254, 255, 256, 1024, 1025, 70_000, 1_100_000)
LETTERS = ("a", "0", "f", "\u00e9", "\U0001f600", "\ud800", "\n", "\x00", "\x1b", " ", ".", "/", "{", "%")


def leaves(value, path=()):
    """Give the path of every text, and of every key, which is marked by None at the path's end."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield (*path, key, None)
            yield from leaves(one, (*path, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from leaves(one, (*path, index))
    elif isinstance(value, str):
        yield path


PLACES = [(which, path) for which, manifest in SPECIMENS.items() for path in leaves(manifest)]


def changed(manifest, path, text):
    made = copy.deepcopy(manifest)
    renamed = path[-1] is None
    path = path[:-1] if renamed else path
    inner = made
    for step in path[:-1]:
        inner = inner[step]
    if renamed:
        inner[text] = inner.pop(path[-1])
    else:
        inner[path[-1]] = text
    return made


def held(node):
    return dict(node.memory.observe().state.pods)


def write(folder, manifest):
    (folder / "odd.json").write_text(json.dumps(manifest))


def take_off(folder, manifest):
    name = f"{manifest['kind']}-{manifest['metadata']['name']}".lower()
    (folder / f"{name}.yaml").unlink(missing_ok=True)


@examples(60)
@given(place=st.sampled_from(PLACES), length=st.sampled_from(LENGTHS), letter=st.sampled_from(LETTERS))
@example(place=("own Node", ("status", "nodeInfo", "bootID")), length=41, letter="a")
@example(place=("own KmeshNodeInfo", ("spec", "bootID")), length=41, letter="\u00e9")
@example(place=("a peer's KmeshNodeInfo", ("spec", "bootID")), length=1024, letter="\x00")
@example(place=("own Pod", ("metadata", "labels", "app")), length=64, letter="f")
@example(place=("a peer's Pod", ("metadata", "name")), length=253, letter="\U0001f600")
def test_a_daemon_goes_on_whatever_is_how_long(place, length, letter):
    which, path = place
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        node = Node(folder)
        node.put(kube.secret(*KEYED))
        node.put(kube.node(3))
        node.put(kube.node(2))
        node.steps()
        before = held(node)
        take_off(folder, SPECIMENS[which])
        write(folder, changed(SPECIMENS[which], path, letter * length))
        for _ in range(2):
            try:
                node.steps(1)
            except KmeshBpfError as error:
                assert which.startswith("own") or which in ("Namespace", "Secret"), error
                node.recorder.failed(str(error))
        assert all(held(node)[one] == before[one] for one in THIRD if which != "Namespace"), "another's, and as it was"
        installation(held(node))
        for lease in node.reported:
            (folder / "lease-kmesh-ipsec-n1.yaml").write_text(json.dumps(lease))
            assert len(lease["metadata"]["annotations"]["kmesh.net/ipsec-status"]) <= LARGEST_REPORT
        for event in node.told:
            assert len(event["message"]) <= 1024
            assert len(event["metadata"]["name"]) <= 253
        for page in ("/metrics", "/readyz", "/healthz"):
            node.recorder.answer(page).body.encode()
        for command in (["status"], ["status", "-o", "json"], ["explain", "web1", "web2"]):
            out, errors = io.StringIO(), io.StringIO()
            assert main([*command, "--manifests", made], io.StringIO(), out, errors) in (0, 1, 2)
            assert "mistake of this program" not in errors.getvalue()
            (out.getvalue() + errors.getvalue()).encode()
            assert len(errors.getvalue().splitlines()) <= 1, "one sentence"
