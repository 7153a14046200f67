# SPDX-License-Identifier: Apache-2.0
"""The stand-in for a container engine refuses a DaemonSet with anything that it would not apply."""

import pytest
import yaml

from tests.image.container import ROOT, Spec


@pytest.fixture
def pod():
    (daemonset,) = yaml.safe_load_all((ROOT / "deploy/base/kmesh.yaml").read_text())
    return daemonset["spec"]["template"]["spec"]


def test_it_knows_all_that_stands_in_the_daemonset_and_takes_it_from_there(pod):
    spec = Spec.of_pod(pod)
    assert spec.command == ["./start_kmesh.sh", *pod["containers"][0]["args"]]
    assert spec.mounts == {"/sys/fs/bpf": "bpffs", "/var/lib/kmesh-ipsec": "state", "/tmp": "emptyDir"}
    assert spec.grace == pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize(
    ("where", "addition"),
    [
        ("", {"hostPID": True}),
        ("", {"initContainers": []}),
        ("", {"hostNetwork": False}),
        ("containers", {"lifecycle": {}}),
        ("containers", {"env": [{"name": "OTHER", "value": "x"}]}),
        ("containers securityContext", {"privileged": True}),
        ("containers securityContext", {"runAsUser": 1}),
        ("containers securityContext", {"allowPrivilegeEscalation": True}),
        ("containers securityContext capabilities", {"drop": []}),
        ("containers securityContext capabilities", {"keep": []}),
        ("containers volumeMounts", {"subPath": "x"}),
        ("volumes", {"hostPath": {"path": "/"}}),
        ("volumes", {"hostPath": None, "emptyDir": {"medium": "Memory"}}),
        ("volumes", {"hostPath": None, "secret": {"secretName": "x"}}),
    ],
)
def test_it_refuses_what_it_would_not_apply(pod, where, addition):
    target = pod
    for word in where.split():
        target = target[word]
        target = target[0] if isinstance(target, list) else target
    target |= addition
    with pytest.raises(ValueError, match="the test knows"):
        Spec.of_pod(pod)
