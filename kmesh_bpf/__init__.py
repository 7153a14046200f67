# SPDX-License-Identifier: Apache-2.0
"""Kmesh IPsec: node-to-node encryption of managed pods' traffic, by eBPF on TC and the kernel's XFRM.

Describe what is known as a :class:`View`; :func:`reconcile` brings a kernel to what that calls for. The library
knows the kernel, nothing of Kubernetes, and reads no environment variable.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from kmesh_bpf.contract import VERSION as CONTRACT_VERSION
from kmesh_bpf.core.addresses import impossible
from kmesh_bpf.core.claims import Evidence, evidence
from kmesh_bpf.core.doctor import Finding, Severity
from kmesh_bpf.core.explain import Fate, Stop, Trace, trace
from kmesh_bpf.core.incarnation import Announcement, Cause, Decision, Memory
from kmesh_bpf.core.marks import check_mark_mask
from kmesh_bpf.core.marks import check_mask as check_node_mark_mask
from kmesh_bpf.core.operations import AddSa, Attach, DeletePod, DeleteSa, Operation, SetPod
from kmesh_bpf.core.options import Options
from kmesh_bpf.core.planner import Plan, make_plan
from kmesh_bpf.core.problems import Problem, ProblemKind
from kmesh_bpf.core.shared import SharedMap
from kmesh_bpf.core.state import (
    Direction,
    KernelState,
    Observation,
    SaId,
    SaUsage,
    managed_pods,
    own_addresses,
    remote_pods,
)
from kmesh_bpf.core.view import Address, Key, Network, Node, Peer, Peers, Pod, Pods, View
from kmesh_bpf.core.watched import EventTotals, PacketFate, PacketPair, PacketSum
from kmesh_bpf.errors import ConfigError, KernelError, KmeshBpfError
from kmesh_bpf.kernel.fake import FakeKernel
from kmesh_bpf.kernel.interface import AttachMode, Kernel
from kmesh_bpf.reconcile import Reconciler, Report, preview, reconcile

if TYPE_CHECKING:
    from kmesh_bpf.kernel import boot_guard, privileges
    from kmesh_bpf.kernel.events import watching
    from kmesh_bpf.kernel.links import LinkWatcher
    from kmesh_bpf.kernel.linux import LinuxKernel
    from kmesh_bpf.kernel.maps import Maps, open_maps
    from kmesh_bpf.kernel.node_facts import diagnose, look_around
    from kmesh_bpf.kernel.pin_root import DEFAULT_PIN_ROOT, claim
    from kmesh_bpf.kernel.programs import Settings

__version__ = "0.1.0"

# Imported when first asked for: they speak to a Linux kernel, which kmeshctl never does, on no system. Some bring
# pyroute2, which takes longer to import than all the rest.
_LATE = {
    "DEFAULT_PIN_ROOT": "kmesh_bpf.kernel.pin_root",
    "LinkWatcher": "kmesh_bpf.kernel.links",
    "LinuxKernel": "kmesh_bpf.kernel.linux",
    "Maps": "kmesh_bpf.kernel.maps",
    "Settings": "kmesh_bpf.kernel.programs",
    "claim": "kmesh_bpf.kernel.pin_root",
    "diagnose": "kmesh_bpf.kernel.node_facts",
    "look_around": "kmesh_bpf.kernel.node_facts",
    "open_maps": "kmesh_bpf.kernel.maps",
    "watching": "kmesh_bpf.kernel.events",
}
_LATE_MODULES = ("boot_guard", "privileges")

__all__ = [
    "CONTRACT_VERSION",
    "DEFAULT_PIN_ROOT",
    "AddSa",
    "Address",
    "Announcement",
    "Attach",
    "AttachMode",
    "Cause",
    "ConfigError",
    "Decision",
    "DeletePod",
    "DeleteSa",
    "Direction",
    "EventTotals",
    "Evidence",
    "FakeKernel",
    "Fate",
    "Finding",
    "Kernel",
    "KernelError",
    "KernelState",
    "Key",
    "KmeshBpfError",
    "LinkWatcher",
    "LinuxKernel",
    "Maps",
    "Memory",
    "Network",
    "Node",
    "Observation",
    "Operation",
    "Options",
    "PacketFate",
    "PacketPair",
    "PacketSum",
    "Peer",
    "Peers",
    "Plan",
    "Pod",
    "Pods",
    "Problem",
    "ProblemKind",
    "Reconciler",
    "Report",
    "SaId",
    "SaUsage",
    "SetPod",
    "Settings",
    "Severity",
    "SharedMap",
    "Stop",
    "Trace",
    "View",
    "boot_guard",
    "check_mark_mask",
    "check_node_mark_mask",
    "claim",
    "diagnose",
    "evidence",
    "impossible",
    "look_around",
    "make_plan",
    "managed_pods",
    "open_maps",
    "own_addresses",
    "preview",
    "privileges",
    "reconcile",
    "remote_pods",
    "trace",
    "watching",
]


def __getattr__(name: str) -> object:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    if name in _LATE_MODULES:
        return import_module(f"kmesh_bpf.kernel.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
