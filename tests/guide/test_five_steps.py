# SPDX-License-Identifier: Apache-2.0
"""The README's five steps, word for word, against a real API server. Tests run in order and share one cluster."""

import http.client
import re
import subprocess
import time

import pytest

from tests.guide.conftest import steps
from tests.lab.capture import Capture
from tests.lab.cluster import wait_for
from tests.lab.network import inside, run, sending
from tests.lab.traffic import Flow, exchange

NODES = {4: ("10.10.0.1", "10.10.0.2"), 6: ("fd00:10::1", "fd00:10::2")}
SENT = 20


def talk(guide, source="p1a", target="p2a", version=4):
    with Capture(guide.network) as seen:
        count = exchange(guide.pod(source), guide.pod(target).address(version), SENT)
    print(
        f"{source} -> {target} IPv{version}: {count}, in clear {seen.pods_in_clear()}, ESP {seen.esp(*NODES[version])}"
    )
    return count, seen


def look(guide, node):
    """Run the guide's tcpdump line on a node while pods talk; give what it prints."""

    def captured():
        run(f"pkill -USR1 -P {process.pid} tcpdump")  # it then tells how many packets it has taken up
        return int(process.stderr.readline().split()[1])

    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{node}", "bash", "-c", guide.look],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any("listening on any" in line for line in process.stderr), "tcpdump ended before it listened"
    exchange(guide.pod("p1a"), guide.pod("p2a").address(4), SENT)
    wait_for("tcpdump has taken them up", lambda: captured() >= 2 * SENT)  # the kernel hands them over once a second
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
    assert [line.split()[0] for line in status.stdout.splitlines()[3:6]] == ["n1", "n2", "n3"]
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
        amiss = re.search(r"^kmesh_ipsec_peers_amiss (\d+)", text, re.MULTILINE)
        assert amiss
        assert ('peer="n' in text) == (int(amiss[1]) > 0)  # one by one are told those that are not well


def test_step_5_a_key_replaced_under_a_flood_raises_the_spi_and_loses_no_packet(guide):
    with Capture(guide.network) as seen, Flow(guide.pod("p1a"), guide.pod("p2a").address(4), 50) as four:
        with Flow(guide.pod("p3a"), guide.pod("p2b").address(6), 50) as six:
            time.sleep(1)
            assert "SPI 2" in guide.cluster.sh(guide.key_again)
            guide.wait_spi(2)
            wait_for("only SPI 2 is sent", lambda: sending("n1", guide.network) == {"0x00000002"})
            time.sleep(3)
    print(f"IPv4: {four}; IPv6: {six}; ESP {seen.esp(*NODES[4])}")
    assert (four.lost, six.lost, seen.pods_in_clear()) == (0, 0, 0)
    assert set(seen.esp(*NODES[4])) == {1, 2}
    assert "ESP(spi=0x00000002,seq=" in look(guide, "n1")


def test_events_and_conditions_tell_of_readiness_and_of_the_replaced_key(guide):
    for condition in ("KeyReplaced", "EncryptionReady"):
        line = f"kubectl wait -n kmesh-system --for=condition={condition} kmeshnodeinfos --all --timeout=150s"
        assert guide.cluster.sh(line).count("condition met") == len(guide.daemons)
        assert guide.cluster.condition("n1", condition)["observedGeneration"] == 2, "one for each SPI"
    for reason in ("EncryptionReady", "KeyReplaced"):
        wanted = {(node, reason) for node in guide.daemons}
        wait_for(f"{reason} of all nodes", lambda wanted=wanted: wanted <= guide.reasons(), 150)
