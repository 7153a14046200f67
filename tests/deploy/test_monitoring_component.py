# SPDX-License-Identifier: Apache-2.0
"""deploy/monitoring beside deploy/base: what it scrapes is there, and its rules and dashboard are the files' own."""

import json

import pytest
import yaml

from tests.deploy.test_rotation import in_a_kustomization
from tests.lab.apiserver import ROOT


@pytest.fixture(scope="module")
def objects(applied, tmp_path_factory) -> dict[str, dict]:
    text = applied.kubectl("kustomize", str(in_a_kustomization("monitoring", tmp_path_factory.mktemp("monitoring"))))
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def test_the_podmonitor_scrapes_the_daemons_where_their_annotations_say(objects):
    monitor, pods = objects["PodMonitor"], objects["DaemonSet"]["spec"]["template"]
    (wanted,) = monitor["spec"]["selector"]["matchExpressions"]
    assert wanted["operator"] == "In"
    assert pods["metadata"]["labels"][wanted["key"]] in wanted["values"]
    assert monitor["metadata"]["namespace"] == objects["DaemonSet"]["metadata"]["namespace"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["path"] == "/" + pods["metadata"]["annotations"]["prometheus.io/path"]
    assert endpoint["port"] in [port["name"] for port in pods["spec"]["containers"][0]["ports"]]
    assert {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "instance"} in endpoint["relabelings"]


def test_rules_and_dashboard_are_the_files_own(objects):
    assert (
        objects["PrometheusRule"]["spec"]
        == yaml.safe_load((ROOT / "deploy/monitoring/alerts.yaml").read_text())["spec"]
    )
    dashboard = objects["ConfigMap"]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["kmesh-ipsec.json"]) == json.loads(
        (ROOT / "deploy/monitoring/dashboard.json").read_text()
    )
