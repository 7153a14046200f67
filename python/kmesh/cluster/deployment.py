# SPDX-License-Identifier: Apache-2.0
"""Where daemons of ours should run, and why one does not: DaemonSets and their pods, as the server has them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kmesh.cluster.fields import LONGEST_WORD, Fields
from kmesh.text import one_line, short
from kmesh_bpf import ConfigError

SELECTOR = "app.kubernetes.io/name in (kmesh,kmesh-ipsec)"
"""The labels of our DaemonSets, of deploy/base and deploy/migrate, and of their pods."""
LARGEST_COUNT = 1_000_000
STARTING = frozenset({"ContainerCreating", "PodInitializing"})
"""What a container waits for in the first seconds of its life."""


@dataclass(frozen=True, slots=True)
class DaemonSet:
    """A DaemonSet, and on how many nodes it wants a pod."""

    name: str
    desired: int


@dataclass(frozen=True, slots=True)
class DaemonPod:
    """A daemon's pod; ``node`` is empty where it has none. ``trouble``: why it does not run; empty: it does."""

    name: str
    node: str
    trouble: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """What should run."""

    sets: tuple[DaemonSet, ...] = ()
    pods: tuple[DaemonPod, ...] = ()


def deployment(sets: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]) -> Deployment:
    """Read the objects; what is of another shape than the server's is left out: it is about advice."""
    return Deployment(tuple(_read(_set, sets)), tuple(_read(_pod, pods)))


def _read(make: Any, manifests: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    for manifest in manifests:
        try:
            yield make(Fields(manifest, longest=LONGEST_WORD))
        except ConfigError:
            continue


def _set(top: Fields) -> DaemonSet:
    status = top.part("status")
    return DaemonSet(
        top.part("metadata").text("name"), status.number("desiredNumberScheduled", 0, LARGEST_COUNT, default=0)
    )


def _pod(top: Fields) -> DaemonPod:
    spec, status = top.part("spec"), top.part("status")
    troubles = (*_scheduling(status), *_containers(status), *_failure(status))
    return DaemonPod(top.part("metadata").text("name"), spec.text("nodeName", ""), next(iter(troubles), ""))


def _scheduling(status: Fields) -> Iterator[str]:
    for one in status.parts("conditions"):
        if one.text("type", "") == "PodScheduled" and one.text("status", "") == "False":
            yield _words(one.text("reason", "not scheduled"), one)


def _containers(status: Fields) -> Iterator[str]:
    for one in (*status.parts("initContainerStatuses"), *status.parts("containerStatuses")):
        waiting, ended = one.part("state").part("waiting"), one.part("state").part("terminated")
        reason = waiting.text("reason", "")
        if reason and reason not in STARTING:
            yield _words(reason, waiting)
        elif ended.has("exitCode") and ended.number("exitCode", -LARGEST_COUNT, LARGEST_COUNT) != 0:
            yield _words(f"{ended.text('reason', 'Error')}, exit status {ended.value('exitCode')}", ended)


def _failure(status: Fields) -> Iterator[str]:
    if status.text("phase", "") == "Failed":
        yield _words(status.text("reason", "Failed"), status)


def _words(reason: str, of: Fields) -> str:
    try:
        message = of.text("message", "")
    except ConfigError:  # longer than anybody reads
        message = ""
    return one_line(f"{reason} ({short(message)})" if message else reason)
