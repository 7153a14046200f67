# SPDX-License-Identifier: Apache-2.0
"""What a command line says of requests, over the kubeconfig: in whose name, and how long each may take. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kmesh.cluster.kubernetes.kubeconfig import Target, header
from kmesh_bpf import ConfigError

IMPERSONATION = "Impersonate-"
"""How the names of the headers begin that tell the server to take us for somebody else."""


@dataclass(frozen=True, slots=True)
class Asking:
    """``user`` and ``groups``: in whose name, empty: as the kubeconfig says. ``timeout``: seconds, 0: as usual."""

    user: str = ""
    groups: tuple[str, ...] = ()
    timeout: float = 0.0

    def named(self, target: Target) -> Target:
        """Give a target whose requests go out in that name.

        Raises:
            ConfigError: groups are named and no user, or a name cannot stand in a request.

        """
        if not self.user:
            if self.groups:
                raise ConfigError("--as-group needs --as, which is missing")
            return target
        kept = [one for one in target.headers if not one[0].startswith(IMPERSONATION)]
        told = [(f"{IMPERSONATION}User", header(self.user, "--as"))]
        told += [(f"{IMPERSONATION}Group", header(one, "--as-group")) for one in self.groups]
        return replace(target, headers=(*kept, *told))

    def at_most(self, seconds: float) -> float:
        """Give how long something may take that usually may take so long."""
        return min(seconds, self.timeout) if self.timeout else seconds


AS_USUAL = Asking()
