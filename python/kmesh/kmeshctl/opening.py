# SPDX-License-Identifier: Apache-2.0
"""The cluster that a command line, or its surroundings, name."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from kmesh.cluster.objects import NAMESPACE
from kmesh.cluster.source import ClusterSource
from kmesh_bpf import ConfigError

STATUS_KINDS = frozenset({"KmeshNodeInfo", "Namespace", "Node", "Pod", "Secret"})
MONITOR_KINDS = frozenset({"Node", "Pod"})
OF_SERVERS = ("kubeconfig", "context", "as_user", "as_groups")
"""What is said of an API server, and means nothing for a folder."""
ANSWER_SECONDS = 10.0
"""Who looks once waits so long for each answer."""
WATCH_ANSWER_SECONDS = 5.0
"""Who looks again and again is told of a server that is silent after so long."""


def cluster(flags: argparse.Namespace, environment: Mapping[str, str]) -> ClusterSource:
    """Open it.

    Raises:
        ConfigError: there is none, or what is said of it cannot be used.

    """
    given = vars(flags)
    folder = given.get("manifests")
    # As in kubectl, -n is where the things are that are asked for: there the pods, else Kmesh's own.
    of_pods = flags.command in ("explain", "dashboard")
    if folder is None:
        return _server(flags, environment, NAMESPACE if of_pods else given.get("namespace", NAMESPACE))
    if any(given.get(name) for name in OF_SERVERS) or ("namespace" in given and not of_pods):
        raise ConfigError(
            "--manifests names a cluster of its own; leave out --kubeconfig, --context, --namespace, --as, --as-group"
        )
    from kmesh.cluster.manifests import FolderCluster  # noqa: PLC0415 # brings PyYAML, which a server needs not

    return FolderCluster(folder)


def _server(flags: argparse.Namespace, environment: Mapping[str, str], namespace: str) -> ClusterSource:
    from kmesh.cluster.kubernetes.asking import Asking  # noqa: PLC0415 # slow, and a folder needs none of it
    from kmesh.cluster.kubernetes.connection import connect  # noqa: PLC0415 # likewise
    from kmesh.cluster.kubernetes.resources import OF_OPERATORS  # noqa: PLC0415 # likewise
    from kmesh.cluster.kubernetes.source import EVERYTHING, KubernetesCluster, Pods  # noqa: PLC0415 # likewise

    given = vars(flags)
    again = flags.command == "dashboard" or any(given.get(one) is not None for one in ("watch", "wait"))
    timeout = given.get("request_timeout", _usual(flags.command, given, again=again))
    asking = Asking(given.get("as_user", ""), tuple(given.get("as_groups", ())), timeout)
    connection = connect(given.get("kubeconfig"), given.get("context"), environment, OF_OPERATORS, asking)
    needed = {"secret": _of_secret(given), "status": STATUS_KINDS, "monitor": MONITOR_KINDS}
    kinds = needed.get(flags.command, EVERYTHING)
    pods = {"status": Pods.UNANNOUNCED, "secret": Pods.ENROLLED}.get(flags.command, Pods.EVERY)
    return KubernetesCluster(
        connection,
        namespace=namespace,
        kinds=kinds,
        pods=pods,
        patience=timeout or None,
        hasty=True,
        once=not again,
    )


def _usual(command: str, given: Mapping[str, Any], *, again: bool) -> float:
    """Give how many seconds a request may take where nothing is said of it; 0: as long as any."""
    if command == "bundle" or (command == "secret" and given.get("action") != "get"):
        return 0.0  # logs are long; and what is written should not be given up early
    return WATCH_ANSWER_SECONDS if again else ANSWER_SECONDS


def _of_secret(given: Mapping[str, Any]) -> frozenset[str]:
    """Give what is read; what is changed is read anew, whatever else was."""
    return frozenset({"Secret"}) if given.get("action") == "get" else frozenset({"KmeshNodeInfo", "Secret"})
