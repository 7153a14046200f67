# SPDX-License-Identifier: Apache-2.0
"""What the DaemonSet asks of a kubelet, against what the daemon does; the file is read, so no API server is needed."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from kmesh.launcher import config
from kmesh.telling.readiness import answer, judged
from kmesh.telling.record import KeyRecord, Record

from kmesh_bpf.kernel.boot_guard import FILE
from kmesh_bpf.kernel.pin_root import DEFAULT_PIN_ROOT
from tests.lab.apiserver import ROOT
from tests.unit.launcher.standin import BOUNDS

(DAEMONSET,) = yaml.safe_load_all((ROOT / "deploy/base/kmesh.yaml").read_text())
POD = DAEMONSET["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
READY = Record("n1", 1000.0, succeeded=1000.0, key=KeyRecord(1, 1))
STARTING = Record("n1", 1000.0)


def asked(probe: str, record: Record, seconds: float) -> int:
    """Give the status that a probe gets, so many seconds after the last attempt at a pass."""
    told = judged(replace(record, bounds=BOUNDS), record.attempted + seconds, 0.0)
    return answer(CONTAINER[probe]["httpGet"]["path"], told).status


@pytest.mark.parametrize("probe", PROBES)
def test_a_daemon_that_is_ready_passes_every_probe(probe):
    assert asked(probe, READY, 0) == 200


def test_one_that_compiles_for_long_is_not_ready_and_not_restarted():
    assert [asked(probe, STARTING, BOUNDS.silence) for probe in PROBES] == [200, 200, 503]


def test_one_that_hangs_is_restarted():
    assert asked("livenessProbe", READY, BOUNDS.silence + 1) == 503


def test_the_probes_go_to_the_port_where_the_daemon_listens():
    (port,) = CONTAINER["ports"]
    where = config.parse(CONTAINER["args"], None, "n1").health
    assert (where.host, where.port) == (None, port["containerPort"])
    assert POD["hostNetwork"] is True, "the port is the node's"
    for probe in PROBES:
        assert CONTAINER[probe]["httpGet"].keys() == {"path", "port"}, "no host, and no TLS"
        assert CONTAINER[probe]["httpGet"]["port"] == port["name"]


def test_who_looks_for_go_kmesh_s_pods_finds_these_by_label_and_scrapes_them_by_annotation():
    template = DAEMONSET["spec"]["template"]["metadata"]
    assert template["labels"]["app"] == DAEMONSET["metadata"]["labels"]["app"] == "kmesh"
    (port,) = CONTAINER["ports"]
    where = "status/metric"
    assert template["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(port["containerPort"]),
        "prometheus.io/path": where,
    }
    assert answer(f"/{where}", judged(READY, READY.attempted, 0.0)).status == 200


def test_it_never_selects_by_go_kmesh_s_label():
    # What is selected by never changes, and two DaemonSets must not mean each other's pods.
    assert DAEMONSET["spec"]["selector"] == {"matchLabels": {"app.kubernetes.io/name": "kmesh"}}


def test_the_name_of_the_node_is_the_one_that_the_pod_was_put_on():
    # The host's name, which counts otherwise, may be another one.
    assert CONTAINER["env"] == [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]


def test_its_account_is_the_one_that_was_given_the_rights():
    account = {
        "kind": "ServiceAccount",
        "name": POD["serviceAccountName"],
        "namespace": DAEMONSET["metadata"]["namespace"],
    }
    rights = list(yaml.safe_load_all((ROOT / "deploy/base/rbac-daemon.yaml").read_text()))
    given = [one["subjects"] for one in rights if "subjects" in one]
    assert given == [[account]] * 3
    assert [one["metadata"]["name"] for one in rights if one["kind"] == "ServiceAccount"] == [account["name"]]


MOUNTS = {one["name"]: one for one in CONTAINER["volumeMounts"]}
HOST_PATHS = {one["name"]: one["hostPath"] for one in POD["volumes"] if "hostPath" in one}


def test_of_the_node_s_folders_it_sees_these_two_only():
    assert HOST_PATHS.keys() == {"bpffs", "state"}


def test_bpffs_it_sees_also_when_it_is_mounted_later():
    # Directory: not made where it is missing, for then a node without bpffs would get pins in a common folder.
    assert HOST_PATHS["bpffs"] == {"path": "/sys/fs/bpf", "type": "Directory"}
    assert MOUNTS["bpffs"] == {"name": "bpffs", "mountPath": "/sys/fs/bpf", "mountPropagation": "HostToContainer"}
    assert Path(MOUNTS["bpffs"]["mountPath"]) in DEFAULT_PIN_ROOT.parents


def test_what_guards_the_next_boot_is_kept_where_the_node_s_boot_looks_for_it_and_can_be_written():
    assert HOST_PATHS["state"] == {"path": str(config.DEFAULT_STATE_DIR), "type": "DirectoryOrCreate"}
    assert MOUNTS["state"] == {"name": "state", "mountPath": str(config.DEFAULT_STATE_DIR)}
    file = str(config.DEFAULT_STATE_DIR / FILE)
    unit = (ROOT / "deploy/boot/kmesh-boot-guard.service").read_text().splitlines()
    assert f"ConditionPathExists={file}" in unit
    assert f"ExecStart=/usr/sbin/nft -f {file}" in unit


def test_what_is_not_of_the_node_is_a_scratch_folder_where_the_compiler_writes():
    others = {one["name"]: one for one in POD["volumes"] if "hostPath" not in one}
    assert list(others.values()) == [{"name": "tmp", "emptyDir": {}}]
    assert [one["mountPath"] for one in CONTAINER["volumeMounts"] if one["name"] in others] == ["/tmp"]


def test_it_stays_on_every_linux_node_however_short_of_room_that_is():
    assert POD["priorityClassName"] == "system-node-critical"
    assert POD["nodeSelector"] == {"kubernetes.io/os": "linux"}
    (term,) = POD["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64", "arm64"]}]}
    assert "limits" not in CONTAINER["resources"]


def test_an_upgrade_goes_over_the_nodes_by_itself_and_a_few_at_a_time():
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}
    assert DAEMONSET["spec"]["updateStrategy"] == strategy
