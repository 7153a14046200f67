# SPDX-License-Identifier: Apache-2.0
"""Bad days of the API server, on each of which one of three daemons is killed and starts anew. After test_five_steps."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from tests.lab import objects
from tests.lab.cluster import wait_for
from tests.lab.kube import ADDRESS
from tests.lab.network import WIRE, Pod, run

BINDING = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/kmesh-ipsec"
ACCOUNT = "/api/v1/namespaces/kmesh-system/serviceaccounts/kmesh-ipsec"
PODS, WRITERS = 2000, 4


def restart(daemon, until=""):
    """Kill the daemon and start it; wait for the words, if given."""
    daemon.stop(signal.SIGKILL)
    daemon.start()
    if until:
        wait_for(f"{daemon.node} says {until!r}", lambda: until in daemon.text(), 120)


def cut(guide) -> int:
    """Reset all connections between daemons and the API server; give how many: ss is silent about a kernel that cannot."""
    killed = [run(f"nsenter --net=/run/netns/{node} ss -H -K dst {ADDRESS}") for node in guide.daemons]
    return sum(len(lines.splitlines()) for lines in killed)


def test_a_broken_secret_changes_nothing_and_is_said_and_the_next_key_goes_on_above(guide):
    with guide.nothing_lost("broken Secret"):
        broken = """'{"data":{"ipSec":"bm9uc2Vuc2U="}}'"""
        guide.cluster.sh(f"kubectl patch secret -n kmesh-system kmesh-ipsec --type=merge -p {broken}")
        wait_for("KeyRefused", lambda: ("n1", "KeyRefused") in guide.reasons())
        wait_for("KeyAccepted is False", lambda: guide.cluster.condition("n1", "KeyAccepted").get("status") == "False")
        refused = guide.cluster.kmeshctl("secret", "create")
        assert refused.returncode == 1
        assert "kmeshctl secret delete" in refused.stderr
        guide.cluster.sh("kmeshctl secret delete")
        assert "SPI 3" in guide.cluster.sh("kmeshctl secret create")
        guide.wait_spi(3)


def test_a_daemon_that_restarts_without_its_permissions_says_which_and_goes_on_when_it_has_them(guide):
    daemon, server = guide.daemons["n2"], guide.cluster.server
    with guide.nothing_lost("permissions taken away"):
        binding = objects.take_away(server, BINDING)
        restart(daemon, "may not list")
        objects.give_back(server, BINDING, binding)
        daemon.wait_ready()
        guide.news(20)


def test_a_token_of_an_account_made_anew_is_taken_up_by_all_also_by_one_that_began_with_the_old_one(guide):
    daemon, server = guide.daemons["n2"], guide.cluster.server
    with guide.nothing_lost("token rotated"):
        objects.give_back(server, ACCOUNT, objects.take_away(server, ACCOUNT))
        time.sleep(11)  # the server remembers for 10 s that the old token was good
        restart(daemon, "does not accept the credentials")
        guide.cluster.renew_tokens()
        assert cut(guide)
        daemon.wait_ready()
        guide.news(21)


def test_an_api_server_that_serves_our_kind_in_an_unknown_version_only_leaves_all_as_it_is(guide):
    daemon = guide.daemons["n2"]
    with guide.nothing_lost("unknown version"):
        objects.serve_another_version(guide.cluster.server)
        try:
            assert cut(guide)
            restart(daemon, "serves it in other versions than kmesh.net/v1alpha1")
        finally:
            objects.serve_our_version(guide.cluster.server)
        daemon.wait_ready()
        guide.news(22)


@contextmanager
def cut_every_second(guide):
    done, killed = threading.Event(), []

    def work():
        while not done.wait(1.0):
            killed.append(cut(guide))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert sum(killed) > len(killed), "less than a connection a second"


def test_watches_cut_every_second_neither_lose_a_change_nor_keep_a_daemon_from_starting(guide):
    daemon = guide.daemons["n2"]
    with guide.nothing_lost("cut every second"), cut_every_second(guide):
        restart(daemon)
        guide.news(23)
        daemon.wait_ready()


def test_an_etcd_that_was_compacted_while_nobody_could_watch_is_read_anew(guide):
    daemon, server = guide.daemons["n2"], guide.cluster.server
    stays = Pod("stays", "n3", (ip_address("10.244.3.24"), ip_address("fd00:244:3::18")), "")
    goes = Pod("goes", "n3", (ip_address("10.244.3.25"), ip_address("fd00:244:3::19")), "")
    guide.cluster.pod(goes)
    guide.wait_managed(goes.address(4))
    with guide.nothing_lost("compacted"):
        run(f"ip -n {WIRE} link set uhost down")
        assert cut(guide)
        guide.cluster.pod(stays)
        guide.cluster.delete_pod(goes.name)
        server.compact()
        # The API server remembers more than etcd does, until it starts anew.
        server.kill_api()
        restart(daemon, "the cluster is not known yet")
        server.start_api()
        server.wait_ready()
        run(f"ip -n {WIRE} link set uhost up")
        cut(guide)
        guide.wait_managed(stays.address(4))
        guide.wait_managed(goes.address(4), managed=False)
        daemon.wait_ready()
    assert "are read anew" in guide.daemons["n1"].text()


def test_an_api_server_that_dies_and_comes_back_costs_no_packet_and_the_view_goes_on(guide):
    daemon = guide.daemons["n2"]
    with guide.nothing_lost("API server killed"):
        guide.cluster.server.kill_api()
        restart(daemon, "the cluster is not known yet")
        guide.cluster.server.start_api()
        guide.cluster.server.wait_ready()
        daemon.wait_ready()
        guide.news(26)
    assert "nothing compiled" in daemon.text()


@pytest.mark.timeout(600)
def test_two_thousand_pods_come_and_go_at_once_while_a_daemon_restarts(guide):
    daemon, server = guide.daemons["n2"], guide.cluster.server
    pods = [Pod(f"many{one}", "n3", (ip_address(f"10.9.{one >> 8}.{one & 255}"),), "") for one in range(PODS)]
    stored = guide.cluster.many_pods(pods)
    parts = [stored[first::WRITERS] for first in range(WRITERS)]
    addresses = {str(pod.addresses[0]) for pod in pods}
    with guide.nothing_lost(f"{PODS} pods"), ThreadPoolExecutor(WRITERS) as several:
        made = several.map(server.store_pods, parts)
        restart(daemon)
        list(made)
        for node in guide.daemons:
            wait_for(f"{node} has them", lambda node=node: addresses <= guide.managed(node), 240)
        list(several.map(server.forget_pods, parts))
        for node in guide.daemons:
            wait_for(f"{node} has none of them", lambda node=node: not addresses & guide.managed(node), 240)
        daemon.wait_ready()


def test_a_node_that_is_uninstalled_leaves_the_cluster_too(guide):
    daemon = guide.daemons["n3"]
    assert daemon.stop() == 0
    assert [file.name for file in daemon.state.iterdir()] == ["boot-guard.nft"]
    done = daemon.uninstall()
    assert done.returncode == 0, done.stderr
    assert not daemon.pin_root.exists()
    assert not list(daemon.state.iterdir())
    assert guide.cluster.info("n3") is None
    assert "kmesh-ipsec-n3" not in guide.cluster.sh("kubectl get leases -n kmesh-system -o name")
    # The SAs stay for 30 s more, as it might come back.
    wait_for("n1 forgets n3", lambda: "10.10.0.3" not in run("ip -n n1 xfrm state"), 150)
