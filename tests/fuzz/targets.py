# SPDX-License-Identifier: Apache-2.0
"""The parsers of what others write: each takes bytes, and gives a value or raises an error of our tree, in bounded time.

A target's ``seeds`` are what it reads in good times, to be changed by :mod:`tests.fuzz.inputs`. What comes out is
written as it would be elsewhere (a log, JSON, a table), for what cannot be written there is as bad as a crash.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from kmesh.cluster import key_file, secret
from kmesh.cluster.documents import manifests
from kmesh.cluster.kubernetes.connection import connect
from kmesh.cluster.kubernetes.decoding import decode_event, decode_list, decode_object
from kmesh.cluster.objects import Object, collect, parse
from kmesh.cluster.snapshot import build_view
from kmesh.cluster.status import describe, from_lease, to_lease
from kmesh.kmeshctl import arguments, explain, health, status, traffic
from kmesh.launcher import config
from kmesh.unexpected import sentence

from kmesh_bpf import ConfigError, FakeKernel, Key, KmeshBpfError, Options, reconcile
from kmesh_bpf.kernel import links, netlink, routes, thresholds, xfrm_messages
from tests.unit.cluster import kube
from tests.unit.cluster.test_status import STATUS
from tests.unit.core import mesh
from tests.unit.kernel.test_golden_dumps import DUMPS, read

LONGEST_SENTENCE = 4000
"""Characters: most name one thing, a report's all that it found."""
SEPARATOR = "\x1f"
"""Between the arguments of a command line."""
FAR_INTERFACE = 7


@dataclass(frozen=True)
class Target:
    """``run`` reads it; ``seeds``: good inputs; ``structured``: they are JSON or YAML."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    structured: bool = False


def check(target: Target, data: bytes) -> None:
    """Read an input.

    Raises:
        Exception: it is a find.

    """
    try:
        target.run(data)
    except KmeshBpfError as error:
        said = sentence(error)
        said.encode()
        if not said or len(said) > LONGEST_SENTENCE or not said.isprintable():
            raise AssertionError(f"a sentence of {len(said)} characters: {said[:200]!r}") from error


def _readable(manifest: object) -> Object | None:
    """Read an object; a broken one harms no other."""
    try:
        return parse(manifest) if isinstance(manifest, dict) else None
    except ConfigError as error:
        sentence(error).encode()
        return None


def _cluster(documents: list[object]) -> None:
    """Live in a cluster: a pass of a node over it, and what kmeshctl says of it."""
    objects = collect(one for one in map(_readable, documents) if one is not None)
    leases = [one for one in documents if isinstance(one, dict) and one.get("kind") == "Lease"]
    found = health.examine(objects, leases, 1_800_000_000.0)
    for form in ("table", "wide", "json", "yaml"):
        status.render(found, form).encode()
    reports, _ = health.read_reports(leases)
    try:
        answer = traffic.explain(traffic.Cluster(objects, reports, (), 0.0), ("web1", "10.244.2.10"), "default")
        explain.render(answer).encode()
    except KmeshBpfError as error:
        sentence(error).encode()
    keys = {1: Key(bytes(range(36)))}
    view = build_view(objects, "n1", keys=keys, services=(), announced=1, announced_at=0.0, boot_id="")
    report = reconcile(
        FakeKernel(mesh.LINKS, lambda: 0.0), view, Options(), lambda: 0.0, lambda: "fresh".ljust(36, "0")
    )
    for problem in report.plan.problems:
        str(problem).encode()


def _documents(suffix: str) -> Callable[[bytes], object]:
    return lambda data: _cluster(list(manifests(data, suffix)))


def _api(kind: str) -> Callable[[bytes], object]:
    """An object as the API server sends it; that it is none at all is a ValueError by contract."""

    def run(data: bytes) -> object:
        try:
            manifest = decode_object(kind, data)
        except ValueError:
            return None
        one = parse(manifest)
        repr(one).encode()
        return one

    return run


def _server(data: bytes) -> None:
    for kind in ("Pod", "Secret", "Node"):
        for decode in (decode_list, decode_event):
            with contextlib.suppress(ValueError):
                decode(kind, data)


def _secret(data: bytes) -> None:
    for manifest in manifests(data, ".json"):
        secret.history(manifest)
        health.changed_at(manifest)
        if secret.holds_key(manifest):
            secret.accept(None, secret.parse_keys(manifest))


def _key_file(data: bytes) -> None:
    manifest = key_file._secret({secret.CURRENT: data, secret.PREVIOUS: data, secret.USED: data})
    secret.history(manifest)
    secret.parse_keys(manifest)


def _lease(data: bytes) -> None:
    for lease in manifests(data, ".json"):
        json.dumps(describe(from_lease(lease))).encode()


def _kubeconfig(data: bytes) -> None:
    """``PATH`` leads nowhere: a changed name of a plugin must not be run."""
    before = os.environ.get("PATH", "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config"
        file.write_bytes(data)
        os.environ["PATH"] = folder
        try:
            connect(str(file), None, {"HOME": folder})
        finally:
            os.environ["PATH"] = before


def _netlink(data: bytes) -> None:
    for header, body in netlink.messages(data):
        if header.nlmsg_type == netlink.lib.NLMSG_ERROR:
            netlink._ack(header, body)
        list(netlink.attributes(body))


def _links(data: bytes) -> None:
    list(links._far_address(data, FAR_INTERFACE))


def _flags(data: bytes) -> None:
    argv = data.decode("utf-8", "surrogateescape").split(SEPARATOR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        try:
            sentence(KmeshBpfError(repr(config.parse(argv, None, "n1"))))
        except ConfigError as error:
            sentence(error).encode()
        arguments.parser().parse_args(argv)


def _key_text(data: bytes) -> None:
    secret.parse_key_text(data.decode("utf-8", "replace"))


OBJECTS = [
    kube.namespace("default", **{"istio.io/dataplane-mode": "Kmesh"}),
    *(make(index) for index in (1, 2) for make in (kube.node, kube.node_info)),
    *(kube.pod(f"web{index}", index, labels={"istio.io/dataplane-mode": "Kmesh"}) for index in (1, 2)),
    kube.secret(kube.entry(2), [kube.entry(1)]),
    kube.service(),
    kube.service_cidr(),
    to_lease(STATUS),
]
KINDS = {
    "namespace": kube.namespace(),
    "node": kube.node(),
    "pod": kube.pod(created="2026-11-24T00:00:00Z", annotations={"a": "b"}, initContainers=["i"]),
    "nodeinfo": kube.node_info(2, 1, **{"kmesh.net/ipsec-replay-window": "4096"}),
    "service": kube.service(status={"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}),
    "servicecidr": kube.service_cidr(),
    "secret-object": kube.secret(kube.entry()),
}
KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "lab",
    "contexts": [{"name": "lab", "context": {"cluster": "c", "user": "u"}}],
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443", "proxy-url": "http://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
}
FLAGS = (
    "--mode=dual-engine --enable-bypass=false --enable-ipsec=true --pin-root=/sys/fs/bpf/x --uplink=eth0 --dry-run",
    "--manifests=c --node-mark-mask=0xfff00000 --replay-window=64 --health-address=[::1]:1 --service-cidr=10.96.0.0/12",
    "secret create --key-file=- --manifests x",
    "status -o json --watch=2 --context a --kubeconfig b",
    "explain a/b c --service-cidr fd00::/64 -n x",
)


def _json(manifest: object) -> bytes:
    return json.dumps(manifest).encode()


def _dumps(prefix: str) -> tuple[bytes, ...]:
    return tuple(body for path in sorted(DUMPS.glob(f"{prefix}*.dump")) for _, body in read(path.stem))


def _messages() -> tuple[bytes, ...]:
    return tuple(
        netlink.message(number, 0, body) for path in sorted(DUMPS.glob("*.dump")) for number, body in read(path.stem)
    )


TARGETS: dict[str, Target] = {
    "manifests-yaml": Target(_documents(".yaml"), (yaml.safe_dump_all(OBJECTS).encode(),), structured=True),
    "manifests-json": Target(_documents(".json"), (_json({"kind": "List", "items": OBJECTS}),), structured=True),
    **{
        f"api-{name}": Target(_api(manifest["kind"]), (_json(manifest),), structured=True)
        for name, manifest in KINDS.items()
    },
    "api-lists": Target(
        _server,
        (
            _json({"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": [kube.pod()]}),
            _json({"type": "ADDED", "object": kube.pod()}),
        ),
        structured=True,
    ),
    "secret": Target(_secret, (_json(kube.secret(kube.entry(2), [kube.entry(1)])),), structured=True),
    "key-file": Target(_key_file, (_json(kube.entry()), _json([kube.entry()]), _json(["0" * 64])), structured=True),
    "key-text": Target(_key_text, (kube.material(1).hex().encode(),)),
    "lease": Target(_lease, (_json(to_lease(STATUS)),), structured=True),
    "kubeconfig": Target(_kubeconfig, (yaml.safe_dump(KUBECONFIG).encode(),), structured=True),
    "netlink-sa": Target(xfrm_messages.decode_sa, _dumps("dump-")),
    "netlink-policy": Target(xfrm_messages.decode_policy, _dumps("dump-")),
    "netlink-messages": Target(_netlink, _messages()),
    "netlink-thresholds": Target(thresholds.decode, _dumps("thresholds")),
    "netlink-routes": Target(routes.devices_out, tuple(bytes.fromhex(one) for one in (
        "0200000000000000fe03000108000f00fe000000080005000a0000010800040002000000",
        "0a400000fe03000100000000140001002001000000000000000000000000000008000400070000000800060000010000",
    ))),
    "netlink-far": Target(_links, (bytes.fromhex("02180000070000000800010a0a000001" + "08000200" + "0a000001"),)),
    "flags": Target(_flags, tuple(line.replace(" ", SEPARATOR).encode() for line in FLAGS)),
}  # fmt: skip
