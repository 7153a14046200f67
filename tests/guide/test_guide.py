"""The README's five steps, word for word, against a real API server. Tests run in order and share one cluster."""

import http.client
import json
import re
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.lab.capture import Capture
from tests.lab.cluster import ROOT, wait_for
from tests.lab.kube import KubeCluster, KubeDaemon
from tests.lab.network import Network, Pod, inside, run
from tests.lab.traffic import Echo, Flow, exchange

NODES = {4: ("10.10.0.1", "10.10.0.2"), 6: ("fd00:10::1", "fd00:10::2")}
SENT = 20


def steps() -> list[str]:
    section = (ROOT / "README.md").read_text().partition("## Five steps")[2].partition("\n## ")[0]
    return re.findall(r"^ {7}(\S.*)$", section, re.MULTILINE)


class Guide:
    def __init__(self, work: Path) -> None:
        self.network = Network(3)
        self.cluster = KubeCluster(work, self.network)
        self.key, self.start, self.label, self.look, self.key_again = steps()
        self.echoes = []
        for node in self.network.nodes:
            for number, letter in ((10, "a"), (11, "b")):
                pod = self.network.add_pod(f"p{node.index}{letter}", node, number)
                self.cluster.pod(pod)
                self.echoes.append(Echo(pod))
        self.daemons = {node.name: KubeDaemon(node.name, self.cluster, work, self.start) for node in self.network.nodes}

    def pod(self, name):
        return self.network.pods[name]

    def managed(self, node):
        from kmesh_bpf import open_maps  # noqa: PLC0415 # in the VM, each import at the head costs seconds

        maps = open_maps(self.daemons[node].pin_root)
        try:
            return {str(address) for address in maps.pods()}
        finally:
            maps.close()

    def wait_managed(self, address, managed=True):
        for node in self.daemons:
            wait_for(f"{address} managed={managed} on {node}", lambda n=node: (address in self.managed(n)) is managed)

    def wait_spi(self, spi):
        wait_for(f"all announce SPI {spi}", lambda: all(self.cluster.spi(node) == spi for node in self.daemons), 120)

    def close(self):
        for daemon in self.daemons.values():
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.stop()
            daemon.close()
        for echo in self.echoes:
            echo.close()
        self.cluster.close()
        self.network.close()


@pytest.fixture(scope="module")
def guide():
    made = Guide(Path(tempfile.mkdtemp(prefix="kmesh-guide-")))
    yield made
    made.close()


def talk(guide, source="p1a", target="p2a", version=4):
    with Capture(guide.network) as seen:
        count = exchange(guide.pod(source), guide.pod(target).address(version), SENT)
    print(
        f"{source} -> {target} IPv{version}: {count}, in clear {seen.pods_in_clear()}, ESP {seen.esp(*NODES[version])}"
    )
    return count, seen


def look(guide, node):
    """Run the guide's tcpdump line on a node while pods talk; give what it prints."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{node}", "bash", "-c", guide.look],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    time.sleep(3)
    exchange(guide.pod("p1a"), guide.pod("p2a").address(4), SENT)
    # Ctrl-C would end grep as well, before tcpdump has written what it holds: no terminal, no lines at once.
    run(f"pkill -INT -P {process.pid} tcpdump")
    return process.communicate(timeout=30)[0]


def test_the_readme_has_the_five_steps_of_the_guide():
    key, start, label, see, again = steps()
    assert key == again == "kmeshctl secret --key=$(dd if=/dev/urandom count=36 bs=1 2>/dev/null | xxd -p -c 64)"
    assert start == "./start_kmesh.sh --mode=dual-engine --enable-bypass=false --enable-ipsec=true"
    assert label == "kubectl label namespace default istio.io/dataplane-mode=Kmesh"
    assert see == "tcpdump -i any | grep ESP"


def test_step_1_stores_the_key_with_spi_1(guide):
    assert "SPI 1" in guide.cluster.sh(guide.key)
    assert guide.cluster.sh("kubectl get secret -n kmesh-system kmesh-ipsec -o name").strip() == "secret/kmesh-ipsec"


def test_step_2_starts_a_daemon_on_every_node_and_each_announces_itself(guide):
    for daemon in guide.daemons.values():
        daemon.start()
    for daemon in guide.daemons.values():
        daemon.wait_ready()
    guide.wait_spi(1)
    count, seen = talk(guide)
    assert count.lost == 0
    assert seen.pods_in_clear() >= 2 * count.sent


@pytest.mark.parametrize("version", [4, 6])
def test_steps_3_and_4_after_the_label_there_is_only_esp(guide, version):
    if version == 4:
        guide.cluster.sh(guide.label)
        for name in guide.network.pods:
            guide.wait_managed(guide.pod(name).address(4))
        time.sleep(2)
    for source, target in (("p1a", "p2a"), ("p2b", "p3a"), ("p3b", "p1b")):
        count, seen = talk(guide, source, target, version)
        assert (count.lost, seen.pods_in_clear()) == (0, 0)
    assert set(talk(guide, version=version)[1].esp(*NODES[version])) == {1}


def test_step_4_the_guide_s_tcpdump_line_shows_esp_both_ways(guide):
    seen = look(guide, "n1")
    print(seen[:300])
    assert "10.10.0.1 > 10.10.0.2: ESP(spi=0x00000001,seq=" in seen
    assert "10.10.0.2 > 10.10.0.1: ESP(spi=0x00000001,seq=" in seen


def test_status_and_explain_say_that_all_is_well(guide):
    wait_for("status is content", lambda: guide.cluster.kmeshctl("status").returncode == 0, 150)
    status = guide.cluster.kmeshctl("status")
    print(status.stdout)
    assert [line.split()[0] for line in status.stdout.splitlines()[1:4]] == ["n1", "n2", "n3"]
    explained = guide.cluster.kmeshctl("explain", "p1a", "p2a")
    print(explained.stdout)
    assert explained.returncode == 0, explained.stdout + explained.stderr


def test_each_daemon_is_healthy_ready_and_tells_its_metrics(guide):
    def get(node, path):
        with inside(node):
            connection = http.client.HTTPConnection("127.0.0.1", 15020, timeout=20)
            connection.connect()
        connection.request("GET", path)
        answer = connection.getresponse()
        found = answer.status, answer.read().decode()
        connection.close()
        return found

    for node in guide.daemons:
        assert get(node, "/healthz")[0] == 200
        wait_for(f"{node} is ready", lambda n=node: get(n, "/readyz")[0] == 200)
        status, text = get(node, "/status/metric")
        assert status == 200
        assert "kmesh_ipsec_" in text
        assert 'peer="n' in text


def test_step_5_a_key_replaced_under_a_flood_raises_the_spi_and_loses_no_packet(guide):
    with Capture(guide.network) as seen, Flow(guide.pod("p1a"), guide.pod("p2a").address(4), 50) as four:
        with Flow(guide.pod("p3a"), guide.pod("p2b").address(6), 50) as six:
            time.sleep(1)
            assert "SPI 2" in guide.cluster.sh(guide.key_again)
            guide.wait_spi(2)
            wait_for("only SPI 2 is sent", lambda: "spi 0x00000001" not in run("ip -n n1 xfrm policy"))
            time.sleep(3)
    print(f"IPv4: {four}; IPv6: {six}; ESP {seen.esp(*NODES[4])}")
    assert (four.lost, six.lost, seen.pods_in_clear()) == (0, 0, 0)
    assert set(seen.esp(*NODES[4])) == {1, 2}
    assert "ESP(spi=0x00000002,seq=" in look(guide, "n1")


def reasons(guide):
    events = json.loads(guide.cluster.sh("kubectl get events -n default -o json"))["items"]
    return {(event["involvedObject"]["name"], event["reason"]) for event in events}


def test_the_cluster_s_events_tell_of_readiness_and_of_the_replaced_key(guide):
    for reason in ("EncryptionReady", "KeyReplaced"):
        wanted = {(node, reason) for node in guide.daemons}
        wait_for(f"{reason} of all nodes", lambda wanted=wanted: wanted <= reasons(guide), 150)


def test_a_broken_secret_changes_nothing_and_is_said_and_the_next_key_goes_on_above(guide):
    with Capture(guide.network) as seen, Flow(guide.pod("p1a"), guide.pod("p2a").address(4), 50) as count:
        broken = """'{"data":{"ipSec":"bm9uc2Vuc2U="}}'"""
        guide.cluster.sh(f"kubectl patch secret -n kmesh-system kmesh-ipsec --type=merge -p {broken}")
        wait_for("KeyRefused", lambda: ("n1", "KeyRefused") in reasons(guide))
        refused = guide.cluster.kmeshctl("secret", "create")
        assert refused.returncode == 1
        assert "kmeshctl secret delete" in refused.stderr
        guide.cluster.sh("kmeshctl secret delete")
        assert "SPI 3" in guide.cluster.sh("kmeshctl secret create")
        guide.wait_spi(3)
    print(f"broken Secret: {count}")
    assert (count.lost, seen.pods_in_clear()) == (0, 0)


def test_two_hundred_pods_come_and_go_at_once_and_others_lose_nothing(guide):
    """Not 2,000, as in tests/cluster, where no daemon runs under emulation."""
    pods = [
        Pod(f"many{number}", "n3", (ip_address(f"10.244.3.{number}"), ip_address(f"fd00:244:3::{number:x}")), "")
        for number in range(20, 220)
    ]
    with Capture(guide.network) as seen, Flow(guide.pod("p1a"), guide.pod("p2a").address(4), 50) as count:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(guide.cluster.pod, pods))
        wait_for("n1 has them", lambda: {str(pod.addresses[1]) for pod in pods} <= guide.managed("n1"))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda pod: guide.cluster.delete_pod(pod.name), pods))
        wait_for("n1 has none of them", lambda: not {str(pod.addresses[0]) for pod in pods} & guide.managed("n1"))
    print(f"200 pods: {count}")
    assert (count.lost, seen.pods_in_clear()) == (0, 0)


def test_a_daemon_that_restarts_without_its_permissions_says_which_and_goes_on_when_it_has_them(guide):
    daemon = guide.daemons["n2"]
    with Capture(guide.network) as seen, Flow(guide.pod("p1a"), guide.pod("p2a").address(4), 50) as count:
        guide.cluster.sh("kubectl delete clusterrolebinding kmesh-ipsec")
        daemon.stop(signal.SIGKILL)
        daemon.start()
        wait_for("it says what it may not", lambda: "may not list" in daemon.text(), 120)
        guide.cluster.sh("kubectl apply --server-side -k ../deploy/base")
        daemon.wait_ready()
    print(f"permissions taken away: {count}")
    assert (count.lost, seen.pods_in_clear()) == (0, 0)


def test_an_api_server_that_dies_and_comes_back_costs_no_packet_and_the_view_goes_on(guide):
    with Capture(guide.network) as seen, Flow(guide.pod("p1a"), guide.pod("p2a").address(4), 50) as count:
        guide.cluster.server.kill_api()
        time.sleep(3)
        guide.cluster.server.start_api()
        guide.cluster.server.wait_ready()
    print(f"API server away: {count}")
    assert (count.lost, seen.pods_in_clear()) == (0, 0)
    guide.network.delete_pod("p2b")
    guide.cluster.delete_pod("p2b")
    guide.wait_managed("10.244.2.11", managed=False)


def test_a_daemon_that_dies_while_the_api_server_is_away_comes_back_with_it(guide):
    daemon = guide.daemons["n2"]
    with Capture(guide.network) as seen, Flow(guide.pod("p1a"), guide.pod("p2a").address(4), 50) as count:
        guide.cluster.server.kill_api()
        daemon.stop(signal.SIGKILL)
        daemon.start()
        wait_for("it says what it waits for", lambda: "the cluster is not known yet" in daemon.text(), 120)
        guide.cluster.server.start_api()
        guide.cluster.server.wait_ready()
        daemon.wait_ready()
        time.sleep(1)
    print(f"daemon restarted without an API server: {count}")
    assert (count.lost, seen.pods_in_clear()) == (0, 0)
    assert "nothing compiled" in daemon.text()


def test_a_node_that_is_uninstalled_leaves_the_cluster_too(guide):
    daemon = guide.daemons["n3"]
    assert daemon.stop() == 0
    done = daemon.uninstall()
    assert done.returncode == 0, done.stderr
    assert not daemon.pin_root.exists()
    assert guide.cluster.info("n3") is None
    assert "kmesh-ipsec-n3" not in guide.cluster.sh("kubectl get leases -n kmesh-system -o name")
    wait_for("n1 forgets n3", lambda: "10.10.0.3" not in run("ip -n n1 xfrm state"))
