# SPDX-License-Identifier: Apache-2.0
"""Kmesh IPsec: node-to-node encryption of managed pods' traffic, by eBPF on TC and the kernel's XFRM.

Describe what is known as a :class:`View`; :func:`reconcile` brings a kernel to what that calls for. The library
knows the kernel, nothing of Kubernetes, and reads no environment variable.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from kmesh_bpf.kernel import boot_guard, privileges
    from kmesh_bpf.kernel.events import watching
    from kmesh_bpf.kernel.fake import FakeKernel
    from kmesh_bpf.kernel.interface import DEFAULT_PIN_ROOT, AttachMode, Kernel
    from kmesh_bpf.kernel.links import LinkWatcher
    from kmesh_bpf.kernel.linux import LinuxKernel
    from kmesh_bpf.kernel.maps import Maps, open_maps
    from kmesh_bpf.kernel.node_facts import diagnose, look_around
    from kmesh_bpf.kernel.pin_root import claim
    from kmesh_bpf.kernel.programs import Settings
    from kmesh_bpf.reconcile import Reconciler, Report, preview, reconcile

__version__ = "0.1.0"

# Imported when first asked for: all of it takes a tenth of a second, and what speaks to a Linux kernel is there on no
# other system; a command line that prints help needs none of it.
_NAMES = {
    "kmesh_bpf.contract": ("CONTRACT_VERSION",),
    "kmesh_bpf.core.addresses": ("impossible",),
    "kmesh_bpf.core.claims": (
        "Evidence",
        "evidence",
    ),
    "kmesh_bpf.core.doctor": (
        "Finding",
        "Severity",
    ),
    "kmesh_bpf.core.explain": (
        "Fate",
        "Stop",
        "Trace",
        "trace",
    ),
    "kmesh_bpf.core.incarnation": (
        "Announcement",
        "Cause",
        "Decision",
        "Memory",
    ),
    "kmesh_bpf.core.marks": (
        "check_mark_mask",
        "check_node_mark_mask",
    ),
    "kmesh_bpf.core.operations": (
        "AddSa",
        "Attach",
        "DeletePod",
        "DeleteSa",
        "Operation",
        "SetPod",
    ),
    "kmesh_bpf.core.options": ("Options",),
    "kmesh_bpf.core.planner": (
        "Plan",
        "make_plan",
    ),
    "kmesh_bpf.core.problems": (
        "Problem",
        "ProblemKind",
    ),
    "kmesh_bpf.core.shared": ("SharedMap",),
    "kmesh_bpf.core.state": (
        "Direction",
        "KernelState",
        "Observation",
        "SaId",
        "SaUsage",
        "managed_pods",
        "own_addresses",
        "remote_pods",
    ),
    "kmesh_bpf.core.view": (
        "Address",
        "Key",
        "Network",
        "Node",
        "Peer",
        "Peers",
        "Pod",
        "Pods",
        "View",
    ),
    "kmesh_bpf.core.watched": (
        "EventTotals",
        "PacketFate",
        "PacketPair",
        "PacketSum",
    ),
    "kmesh_bpf.errors": (
        "ConfigError",
        "KernelError",
        "KmeshBpfError",
    ),
    "kmesh_bpf.kernel": (
        "boot_guard",
        "privileges",
    ),
    "kmesh_bpf.kernel.events": ("watching",),
    "kmesh_bpf.kernel.fake": ("FakeKernel",),
    "kmesh_bpf.kernel.interface": (
        "DEFAULT_PIN_ROOT",
        "AttachMode",
        "Kernel",
    ),
    "kmesh_bpf.kernel.maps": (
        "Maps",
        "open_maps",
    ),
    "kmesh_bpf.kernel.node_facts": (
        "diagnose",
        "look_around",
    ),
    "kmesh_bpf.kernel.pin_root": ("claim",),
    "kmesh_bpf.kernel.programs": ("Settings",),
    "kmesh_bpf.reconcile": (
        "Reconciler",
        "Report",
        "preview",
        "reconcile",
    ),
    "kmesh_bpf.kernel.links": ("LinkWatcher",),
    "kmesh_bpf.kernel.linux": ("LinuxKernel",),
}
_RENAMED = {"CONTRACT_VERSION": "VERSION", "check_node_mark_mask": "check_mask"}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES[name])
    try:
        found = getattr(module, _RENAMED.get(name, name))
    except AttributeError:  # a module of a package
        found = import_module(f"{_MODULES[name]}.{name}")
    globals()[name] = found
    return found


class _Package(ModuleType):
    """Has the function ``reconcile``, never the module of the same name, whoever imports that first."""

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute; the import system does so with each submodule."""
        if name == "reconcile" and isinstance(value, ModuleType):
            value = value.reconcile
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
