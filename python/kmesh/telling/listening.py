# SPDX-License-Identifier: Apache-2.0
"""Where a server listens."""

from __future__ import annotations

from dataclasses import dataclass

from kmesh_bpf import Address


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where to listen. ``host`` None: every address of the node, of both families. Port 0: any that is free."""

    host: Address | None
    port: int

    def __str__(self) -> str:
        host = "" if self.host is None else f"[{self.host}]" if self.host.version == 6 else str(self.host)
        return f"{host}:{self.port}"
