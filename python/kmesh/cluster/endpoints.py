# SPDX-License-Identifier: Apache-2.0
"""Which addresses a Service gives its traffic to: EndpointSlices, as somebody asks for them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kmesh.cluster.fields import LONGEST_WORD, Fields
from kmesh_bpf import Address, ConfigError

API = "discovery.k8s.io/v1"
OF_SERVICE = "kubernetes.io/service-name"
"""The label by which a slice belongs to a Service of its namespace."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address behind a Service. ``ready``: the Service gives it traffic."""

    address: Address
    ready: bool


def of_service(manifest: Mapping[str, Any], namespace: str, service: str) -> bool:
    """Tell whether a manifest is a slice of that Service."""
    if (manifest.get("apiVersion"), manifest.get("kind")) != (API, "EndpointSlice"):
        return False
    try:
        metadata = Fields(manifest, longest=LONGEST_WORD).part("metadata")
        return (
            metadata.text("namespace", "default") == namespace and metadata.labels("labels").get(OF_SERVICE) == service
        )
    except ConfigError:
        return False


def endpoints(slices: Iterable[Mapping[str, Any]]) -> tuple[Endpoint, ...]:
    """Give the endpoints of a Service's slices, each address once.

    An endpoint has one address (the API's documentation of EndpointSlice: consumers use the first one alone); one that
    does not say whether it is ready counts as such. What is no address (``addressType: FQDN``) is left out.
    """
    found: dict[Address, bool] = {}
    for one in slices:
        try:
            parts = Fields(one, longest=LONGEST_WORD).parts("endpoints")
        except ConfigError:
            continue  # of another shape than the server's
        for part in parts:
            try:
                address = part.addresses("addresses")[0]
                conditions = part.part("conditions")
                ready = conditions.flag("ready") if conditions.has("ready") else True
            except (ConfigError, IndexError):
                continue
            found[address] = found.get(address, False) or ready
    return tuple(
        Endpoint(address, ready)
        for address, ready in sorted(found.items(), key=lambda item: (item[0].version, item[0]))
    )
