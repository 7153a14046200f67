# SPDX-License-Identifier: Apache-2.0
"""Where daemons should run, and why nothing is heard of one."""

import json
from dataclasses import replace

import pytest
from kmesh.cluster.deployment import deployment

from tests.unit.cluster import kube
from tests.unit.kmeshctl.test_status import BASE, NOW, REPORTS, WELL, Source, status

NODES = (kube.node(1), kube.node(2), kube.node(3), kube.secret(kube.entry(1)))


def daemon_set(desired=3, name="kmesh"):
    return {"metadata": {"name": name}, "status": {"desiredNumberScheduled": desired}}


def daemon_pod(number, state=None, **status):
    found = {"phase": "Running", "containerStatuses": [{"name": "kmesh", "state": state or {"running": {}}}], **status}
    return {"metadata": {"name": f"kmesh-{number}"}, "spec": {"nodeName": f"n{number}"}, "status": found}


def told(sets=(), pods=(), manifests=NODES, reports=()):
    code, text = status(source=Source(manifests, reports, deployed=deployment(sets, pods)))
    return code, text.split("\n\n", 2)[2].splitlines()


PULL = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "kmesh:x"\u001b[2J'}}


def test_a_cluster_without_a_node_or_a_daemon_is_not_well():
    assert told(manifests=(kube.secret(kube.entry(1)),)) == (
        1,
        ["there is no Node, so nothing is encrypted: is this the cluster that was meant?"],
    )
    code, text = status(source=Source(NODES, ()))
    assert (code, text.splitlines()[-1]) == (
        1,
        "no daemon has ever announced itself, on none of 3 Nodes: docs/install.md says how they start",
    )
    assert json.loads(status("-o", "json", source=Source(NODES, ()))[1])["healthy"] is False


def test_a_cluster_that_has_no_daemonset_is_told_how_to_get_one():
    assert told() == (
        1,
        [
            "no DaemonSet of this project is in namespace kmesh-system, and nothing is heard of n1, n2, n3: "
            "kubectl apply -k deploy/base"
        ],
    )


def test_why_a_daemon_does_not_run_is_told_by_its_pods():
    crashed = {"terminated": {"exitCode": 1, "reason": "Error"}}
    unscheduled = daemon_pod(4, conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}])
    unscheduled["spec"] = {}
    pods = (daemon_pod(1, PULL), daemon_pod(2), daemon_pod(3, crashed), unscheduled)
    assert told([daemon_set(5)], pods) == (
        1,
        [
            "DaemonSet kmesh wants 5 daemons, and has 4 pods: kubectl -n kmesh-system describe daemonset kmesh",
            "the daemon's pod kmesh-4: Unschedulable",
            'n1: its daemon does not run: ImagePullBackOff (Back-off pulling image "kmesh:x"\\x1b[2J); '
            "kubectl -n kmesh-system describe pod kmesh-1",
            "n2: its daemon has said nothing yet: kubectl -n kmesh-system logs kmesh-2",
            "n3: its daemon does not run: Error, exit status 1; kubectl -n kmesh-system describe pod kmesh-3",
        ],
    )


def test_a_daemonset_that_fits_no_node_is_told():
    assert told([daemon_set(0)])[1] == ["DaemonSet kmesh wants a daemon on no node: does its nodeSelector fit any?"]


def test_a_node_that_should_run_none_may_be_silent_and_a_daemon_that_has_ended_is_told_with_its_pod():
    three = (*BASE, kube.node(3))
    assert told([daemon_set(2)], [daemon_pod(1), daemon_pod(2)], three, REPORTS) == (0, ["all is as it should be"])
    late = (WELL, replace(WELL, node="n2", reported_at=NOW - 400))
    backing_off = daemon_pod(2, {"waiting": {"reason": "CrashLoopBackOff"}})
    assert told([daemon_set(2)], [daemon_pod(1), backing_off], BASE, late)[1] == [
        "n2: its last report is 6m old; does its daemon run?",
        "n2: its daemon does not run: CrashLoopBackOff; kubectl -n kmesh-system describe pod kmesh-2",
    ]


def test_where_all_is_well_nobody_asks_for_pods():
    source = Source()
    source.daemons = None
    assert status(source=source)[0] == 0


@pytest.mark.parametrize("odd", [{}, {"metadata": None}, {"metadata": {"name": 7}}, {"status": []}])
def test_what_is_no_daemonset_or_pod_is_left_out(odd):
    assert deployment([odd, daemon_set()], [odd, daemon_pod(1)]) == deployment([daemon_set()], [daemon_pod(1)])
    long = {"waiting": {"reason": "CreateContainerError", "message": "x" * 5000}}
    assert deployment([], [daemon_pod(1, long)]).pods[0].trouble == "CreateContainerError"
