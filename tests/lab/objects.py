# SPDX-License-Identifier: Apache-2.0
"""Objects in an API server, put there and taken away as kubelets, controllers and people would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kmesh.cluster.kubernetes.resources import Collection
from kmesh.cluster.objects import CLUSTER_WIDE

from tests.lab.apiserver import ApiServer, RefusedError

KEPT = ("default", "kube-node-lease", "kube-public", "kube-system", "kmesh-system")
WITH_STATUS = ("Node", "Pod", "Service")
NOW = {"gracePeriodSeconds": 0}


def path(manifest: Mapping[str, Any]) -> str:
    kind, metadata = manifest["kind"], manifest["metadata"]
    namespace = "" if kind in CLUSTER_WIDE else metadata["namespace"]
    return Collection(kind, namespace).item(metadata["name"])


def put(server: ApiServer, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Create or replace an object, its status too; give it as stored. Of a pod, the spec stays.

    Not by server-side apply: that refuses a Node with two InternalIPs.
    """
    metadata = {name: value for name, value in manifest["metadata"].items() if name != "uid"}
    body: dict[str, Any] = {**manifest, "metadata": metadata}
    try:
        here = server.request("GET", path(manifest))
    except RefusedError as error:
        if error.code != 404:
            raise
        stored = server.request("POST", path(manifest).rpartition("/")[0], body)
    else:
        spec = {"spec": here["spec"]} if manifest["kind"] == "Pod" else {}
        body = {**here, **manifest, **spec, "metadata": {**here["metadata"], **metadata}}
        stored = server.request("PUT", path(manifest), body)
    if manifest["kind"] in WITH_STATUS and "status" in manifest:
        status = {**stored.get("status", {}), **manifest["status"]}
        stored = server.request("PUT", f"{path(manifest)}/status", {**stored, "status": status})
    return stored


def daemon_token(server: ApiServer, node: str) -> str:
    """Make the pod of our DaemonSet on a node, if it is not there, and a token as a kubelet gets for it."""
    containers = [{"name": "kmesh", "image": "lab"}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"kmesh-{node}", "namespace": "kmesh-system"},
        "spec": {"nodeName": node, "serviceAccountName": "kmesh-ipsec", "containers": containers},
    }
    return server.service_account_token("kmesh-system", "kmesh-ipsec", put(server, pod))


def delete(server: ApiServer, manifest: Mapping[str, Any]) -> None:
    """Delete an object, if there; a pod at once."""
    try:
        server.request("DELETE", path(manifest), NOW if manifest["kind"] == "Pod" else None)
    except RefusedError as error:
        if error.code != 404:
            raise


def take_away(server: ApiServer, path: str) -> dict[str, Any]:
    """Delete an object; give what :func:`give_back` wants."""
    here = server.request("GET", path)
    server.request("DELETE", path)
    metadata = {name: here["metadata"][name] for name in ("name", "namespace", "labels") if name in here["metadata"]}
    return {**here, "metadata": metadata}


def give_back(server: ApiServer, path: str, manifest: Mapping[str, Any]) -> None:
    """Make an object anew that :func:`take_away` took; its uid is another."""
    server.request("POST", path.rpartition("/")[0], manifest)


def delete_namespace(server: ApiServer, name: str) -> None:
    """Delete an empty namespace; there is no controller here that would finish it."""
    delete(server, {"kind": "Namespace", "metadata": {"name": name}})
    here = server.request("GET", f"/api/v1/namespaces/{name}")
    server.request("PUT", f"/api/v1/namespaces/{name}/finalize", {**here, "spec": {"finalizers": []}})


def serve_another_version(server: ApiServer) -> None:
    """Let the server have KmeshNodeInfo in a version only that no daemon knows, as a newer CRD could."""
    _patch_crd(
        server,
        {"op": "copy", "from": "/spec/versions/0", "path": "/spec/versions/1"},
        {"op": "replace", "path": "/spec/versions/1/name", "value": "v1beta1"},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": False},
        {"op": "replace", "path": "/spec/versions/0/served", "value": False},
    )


def serve_our_version(server: ApiServer) -> None:
    """Undo that."""
    _patch_crd(
        server,
        {"op": "replace", "path": "/spec/versions/0/served", "value": True},
        {"op": "remove", "path": "/spec/versions/1"},
    )


def _patch_crd(server: ApiServer, *operations: Mapping[str, Any]) -> None:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/kmeshnodeinfos.kmesh.net"
    server.request("PATCH", path, operations, "application/json-patch+json")


def clear(server: ApiServer) -> None:
    """Take away whatever a test left, and all labels of the namespaces that stay."""
    namespaces = [one["metadata"]["name"] for one in server.request("GET", "/api/v1/namespaces")["items"]]
    for name in namespaces:
        for kind in ("Pod", "Secret"):
            server.request("DELETE", Collection(kind, name).path, NOW)
        if name not in KEPT:
            delete_namespace(server, name)
    for one in server.request("GET", Collection("Service").path)["items"]:
        if one["metadata"]["name"] != "kubernetes":
            delete(server, {**one, "kind": "Service"})
    server.request("DELETE", Collection("Node").path)
    for kind in ("KmeshNodeInfo", "Lease"):
        server.request("DELETE", Collection(kind, "kmesh-system").path)
    for one in server.request("GET", Collection("ServiceCIDR").path)["items"]:
        if one["metadata"]["name"] != "kubernetes":
            delete(server, {**one, "kind": "ServiceCIDR"})
    put(server, {"kind": "Namespace", "metadata": {"name": "default", "labels": {}}})
