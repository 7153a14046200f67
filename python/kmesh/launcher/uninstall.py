# SPDX-License-Identifier: Apache-2.0
"""What ``uninstall`` removes: all that a daemon leaves in the kernel and the cluster. It takes no loop and no view."""

from __future__ import annotations

import logging
from pathlib import Path

from kmesh.cluster.source import ClusterSource
from kmesh_bpf import Kernel

log = logging.getLogger("kmesh")


def uninstall(kernel: Kernel, source: ClusterSource | None, node: str, pin_root: Path) -> tuple[str, ...]:
    """Remove every kernel object of ours, then our KmeshNodeInfo; give what could not be removed."""
    failures = kernel.remove_everything()
    if source is not None:
        source.withdraw(node)
        log.info("KmeshNodeInfo %s withdrawn", node)
    if not failures:
        log.info("nothing of ours is left below %s or in XFRM", pin_root)
    return tuple(str(failure.error) for failure in failures)
