# SPDX-License-Identifier: Apache-2.0
"""What is decoded of an API server's JSON: the fields that somebody reads, and no others. Pure.

An object whose fields are of another shape than expected is decoded whole, so that its reader can name what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import msgspec

# Which fields are read stands in kmesh.cluster.objects; a test holds both against each other, field by field.


class _Metadata(TypedDict, total=False):
    name: Any
    namespace: Any
    uid: Any
    resourceVersion: Any
    labels: Any


class _NodeMetadata(_Metadata, total=False):
    deletionTimestamp: Any


# Of a pod's annotations, which may be long, one.
_PodAnnotations = TypedDict("_PodAnnotations", {"sidecar.istio.io/status": Any}, total=False)


class _PodMetadata(_NodeMetadata, total=False):
    annotations: _PodAnnotations | None
    creationTimestamp: Any


class _Owner(TypedDict, total=False):
    kind: Any
    uid: Any


class _NodeInfoMetadata(_NodeMetadata, total=False):
    annotations: Any
    generation: Any
    ownerReferences: list[_Owner] | None


class _Write(TypedDict, total=False):
    time: Any


class _SecretMetadata(_Metadata, total=False):
    creationTimestamp: Any
    managedFields: list[_Write] | None


class _Object(TypedDict, total=False):
    kind: Any
    apiVersion: Any
    metadata: _Metadata | None


class _NodeSpec(TypedDict, total=False):
    podCIDR: Any
    podCIDRs: Any


class _NodeSystem(TypedDict, total=False):
    bootID: Any


class _NodeStatus(TypedDict, total=False):
    addresses: Any
    nodeInfo: _NodeSystem | None


class _Node(TypedDict, total=False):
    kind: Any
    apiVersion: Any
    metadata: _NodeMetadata | None
    spec: _NodeSpec | None
    status: _NodeStatus | None


class _Container(TypedDict, total=False):
    name: Any


class _PodSpec(TypedDict, total=False):
    nodeName: Any
    hostNetwork: Any
    containers: list[_Container] | None
    initContainers: list[_Container] | None


class _PodStatus(TypedDict, total=False):
    phase: Any
    podIP: Any
    podIPs: Any


class _Pod(TypedDict, total=False):
    kind: Any
    apiVersion: Any
    metadata: _PodMetadata | None
    spec: _PodSpec | None
    status: _PodStatus | None


class _NodeInfo(TypedDict, total=False):
    kind: Any
    apiVersion: Any
    metadata: _NodeInfoMetadata | None
    spec: Any


class _Secret(TypedDict, total=False):
    kind: Any
    apiVersion: Any
    metadata: _SecretMetadata | None
    type: Any
    data: Any


class _ServiceCidr(_Object, total=False):
    spec: Any


class _ServiceSpec(TypedDict, total=False):
    clusterIP: Any
    clusterIPs: Any
    externalIPs: Any
    loadBalancerIP: Any


class _Ingress(TypedDict, total=False):
    ip: Any


class _LoadBalancer(TypedDict, total=False):
    ingress: list[_Ingress] | None


class _ServiceStatus(TypedDict, total=False):
    loadBalancer: _LoadBalancer | None


class _Service(_Object, total=False):
    spec: _ServiceSpec | None
    status: _ServiceStatus | None


# Structs, since a TypedDict's own field can not be Raw: a piece of text whose decoding is left for later.


class _List(msgspec.Struct):
    kind: str
    metadata: dict[str, Any]
    items: list[msgspec.Raw]


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


WHOLE = msgspec.json.Decoder()
DECODERS: Mapping[str, msgspec.json.Decoder[Any]] = {
    "Namespace": msgspec.json.Decoder(_Object),
    "Node": msgspec.json.Decoder(_Node),
    "Pod": msgspec.json.Decoder(_Pod),
    "KmeshNodeInfo": msgspec.json.Decoder(_NodeInfo),
    "Secret": msgspec.json.Decoder(_Secret),
    "ServiceCIDR": msgspec.json.Decoder(_ServiceCidr),
    "Service": msgspec.json.Decoder(_Service),
}
"""By kind; of others all is decoded."""
LIST, EVENT = msgspec.json.Decoder(_List), msgspec.json.Decoder(_Event)
ERROR = "ERROR"
"""The type of a watch event that holds no object but a Status."""
TYPES = frozenset({"ADDED", "MODIFIED", "DELETED", "BOOKMARK", ERROR})
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_object(kind: str, text: bytes | msgspec.Raw) -> dict[str, Any]:
    """Give the fields used of an object.

    Raises:
        ValueError: this is no JSON object.

    """
    try:
        try:
            value = DECODERS.get(kind, WHOLE).decode(text)
        except msgspec.ValidationError:
            value = WHOLE.decode(text)
    except _BROKEN as error:
        raise ValueError("no JSON") from error
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def decode_list(kind: str, text: bytes, *, whole: bool = False) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Give the objects of a list, with the fields used or ``whole``, and the list's own metadata.

    Whatever says nothing of its kind, has no items or no resourceVersion is no list: not an empty one either.

    Raises:
        ValueError: this is no list of objects of this kind.

    """
    try:
        found = LIST.decode(text)
    except _BROKEN as error:
        raise ValueError("no list") from error
    version = found.metadata.get("resourceVersion")
    if found.kind != f"{kind}List" or not isinstance(version, str) or not version:
        raise ValueError(f"no list of {kind}")
    items = [decode_object("" if whole else kind, one) for one in found.items]
    if not all("metadata" in one for one in items):
        raise ValueError("no list of objects")
    return items, found.metadata


def decode_event(kind: str, line: bytes) -> tuple[str, dict[str, Any]]:
    """Give the type of a watch event and the fields used of its object; all fields, if the type is ``ERROR``.

    Raises:
        ValueError: this is no event.

    """
    try:
        event = EVENT.decode(line)
    except _BROKEN as error:
        raise ValueError("no event") from error
    if event.type not in TYPES:
        raise ValueError("no event of a known type")
    return event.type, decode_object("" if event.type == ERROR else kind, event.object)
