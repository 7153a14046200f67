# SPDX-License-Identifier: Apache-2.0
"""Names that a shell completes: pods, namespaces, nodes, Services, contexts; asked for by completion's scripts.

Whoever completes wants an answer at once, or none: nothing is told of what goes wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import TextIO

from kmesh.cluster.objects import ClusterObjects
from kmesh.cluster.source import read_whole
from kmesh.kmeshctl import opening
from kmesh.kmeshctl.arguments import cluster_flags
from kmesh_bpf import ConfigError, KmeshBpfError

SECONDS = 3.0
"""For the server's answer: who waits longer types it."""
DEFAULT_NAMESPACE = "default"


def run(words: Sequence[str], stdout: TextIO, environment: Mapping[str, str]) -> int:
    """Print the names of a kind, one a line; ``words``: the kind, and the command line so far."""
    kind, *line = words or [""]
    flags = argparse.Namespace()
    with suppress(ConfigError):
        flags, _ = cluster_flags().parse_known_args(joined(line))
    flags.command, flags.request_timeout, flags.watch = "explain", SECONDS, None
    with suppress(KmeshBpfError):
        stdout.write("".join(f"{name}\n" for name in _names(kind, flags, environment)))
    return 0


def joined(words: Sequence[str]) -> list[str]:
    """Put together what bash takes apart at the equals sign, and leave out what is being typed."""
    found: list[str] = []
    glue = False
    for word in words:
        if word == "=" and found:
            found[-1] += word
            glue = True
        elif glue:
            found[-1] += word
            glue = False
        else:
            found.append(word)
    # A flag without its value yet is no flag.
    while found and found[-1].startswith("-") and "=" not in found[-1]:
        found.pop()
    return found


def _names(kind: str, flags: argparse.Namespace, environment: Mapping[str, str]) -> Iterator[str]:
    if kind == "contexts":
        from kmesh.cluster.kubernetes.access import contexts  # noqa: PLC0415 # a folder needs none of it

        yield from contexts(vars(flags).get("kubeconfig"), environment)
        return
    with closing(opening.cluster(flags, environment)) as source:
        objects = read_whole(source)
    yield from sorted(set(of(objects, kind, vars(flags).get("namespace", DEFAULT_NAMESPACE))))


def of(objects: ClusterObjects, kind: str, namespace: str) -> Iterator[str]:
    """Give the names of a kind: ``namespaces``, ``nodes``, ``ends`` (whatever explain takes)."""
    match kind:
        case "namespaces":
            yield from (one.name for one in objects.namespaces)
        case "nodes":
            yield from (one.name for one in objects.nodes)
        case "ends":
            for pod in objects.pods:
                yield pod.name if pod.namespace == namespace else pod.label
            for service in objects.service_objects:
                yield (
                    f"svc/{service.name}"
                    if service.namespace == namespace
                    else f"svc/{service.namespace}/{service.name}"
                )
            yield from (f"node/{one.name}" for one in objects.nodes)
