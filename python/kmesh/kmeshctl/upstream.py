# SPDX-License-Identifier: Apache-2.0
"""Commands of Go Kmesh's kmeshctl that are not provided here: each says so, with a way out, whatever stands behind it.

They are those of its main of August 2026 (ctl/ and docs/ctl), and some that it has had before or is about to get.
"""

from __future__ import annotations

from collections.abc import Sequence

from kmesh_bpf import ConfigError

METRICS = "each node's daemon serves its metrics at :15020/status/metric"
NO_PART = "it encrypts, and has no part in"
NOT_PROVIDED = {
    "accesslog": f"{METRICS}; there are no access logs",
    "authz": f"{NO_PART} authorization; use NetworkPolicies",
    "dnsproxy": f"{NO_PART} DNS",
    "dump": "see kmeshctl status -o json, kmeshctl explain POD POD, and on a node ./dump_maps, beside start_kmesh.sh",
    "install": "use kubectl apply -k deploy/base",
    "log": "start kmesh-daemon with --log-level; its log: kubectl -n kmesh-system logs -l app=kmesh",
    "mcp": "programs can read kmeshctl status -o json and kmeshctl explain POD POD -o json",
    "monitoring": f"{METRICS}, always",
    "namespace": "use kubectl get namespaces -L istio.io/dataplane-mode",
    "node-summary": "see kmeshctl status",
    "service": "see kmeshctl explain POD ADDRESS, with the Service's address",
    "trace": "see kmeshctl explain POD POD",
    "waypoint": f"{NO_PART} waypoints; use istioctl waypoint",
}
"""Their names, and the ways out."""


def refuse(words: Sequence[str]) -> None:
    """Refuse one of these commands, or its help; ``words``: a command line without the flags that all commands take.

    Raises:
        ConfigError: it begins with one of them.

    """
    command = next((word for word in words if word != "help"), "")
    if command in NOT_PROVIDED:
        raise ConfigError(f"{command} is not provided by this project: {NOT_PROVIDED[command]}")
