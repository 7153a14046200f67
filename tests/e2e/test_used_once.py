# SPDX-License-Identifier: Apache-2.0
"""No key is used twice from the start, and nothing that was recorded is accepted again."""

import shutil
import socket
import time

import pytest

from tests.lab.capture import ESP, ETH_P_ALL
from tests.lab.cluster import wait_for
from tests.lab.listening import Listening
from tests.lab.network import WIRE, inside, run
from tests.lab.traffic import exchange

SENT = 20
HERE, THERE = "10.10.0.1", "10.10.0.2"


class Recorder:
    """Keeps the ESP frames of IPv4 that n1 sends to n2, to send them again."""

    def __init__(self):
        self.frames = []
        with inside(WIRE):
            listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            listener.bind(("u1", ETH_P_ALL))
        self._listening = Listening([listener], self._take)

    def __enter__(self):
        self._listening.start()
        return self

    def __exit__(self, *_):
        time.sleep(0.3)
        self._listening.end()

    def _take(self, listener):
        frame = listener.recv(2048)
        ours = frame[12:14] == b"\x08\x00" and frame[23] == ESP and frame[26:30] == socket.inet_aton(HERE)
        if ours and frame[30:34] == socket.inet_aton(THERE):
            self.frames.append(frame)

    def again(self):
        with inside(WIRE), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("u2", 0))
            for frame in self.frames:
                raw.send(frame)
        time.sleep(0.5)


def accepted(lab, recorder):
    """Send what was recorded again; give how many n2 decrypted."""
    before = lab.counters("n2")["decrypted"]
    recorder.again()
    return lab.counters("n2")["decrypted"] - before


def boot_id(lab, node):
    return (lab.cluster.info(node) or {"spec": {"bootID": ""}})["spec"]["bootID"]


def heal(lab, source="p1a", target="p2a"):
    """Wait until packets come through again, and lose none from then on."""
    address = lab.pod(target).address(4)
    wait_for(f"{source} reaches {target}", lambda: exchange(lab.pod(source), address, 3).lost == 0)
    assert exchange(lab.pod(source), address, SENT).lost == 0


def test_what_was_recorded_is_not_accepted_by_a_node_that_lost_its_sas_and_then_its_pins(enrolled):
    lab = enrolled
    daemon = lab.daemons["n2"]
    with Recorder() as recorder:
        assert exchange(lab.pod("p1a"), lab.pod("p2a").address(4), SENT).lost == 0
    assert len(recorder.frames) >= SENT
    seen = {boot_id(lab, "n2")}
    run("ip -n n2 xfrm state flush")
    wait_for("a new incarnation", lambda: boot_id(lab, "n2") not in seen)
    seen.add(boot_id(lab, "n2"))
    daemon.stop()
    shutil.rmtree(daemon.pin_root)
    run("ip -n n2 xfrm state flush")
    daemon.start()
    daemon.wait_ready()
    wait_for("yet another incarnation", lambda: boot_id(lab, "n2") not in seen)
    heal(lab)
    assert accepted(lab, recorder) == 0


def test_a_node_that_is_uninstalled_and_started_in_the_same_boot_has_other_keys(enrolled):
    lab = enrolled
    daemon, was = lab.daemons["n2"], boot_id(lab, "n2")
    with Recorder() as recorder:
        assert exchange(lab.pod("p1a"), lab.pod("p2a").address(4), SENT).lost == 0
    daemon.stop()
    assert daemon.uninstall().returncode == 0
    daemon.start()
    daemon.wait_ready()
    wait_for("it is announced", lambda: lab.cluster.spi("n2") > 0)
    assert boot_id(lab, "n2") not in ("", was)
    heal(lab)
    assert accepted(lab, recorder) == 0


@pytest.mark.parametrize("pause", [1, 45], ids=["a moment", "longer than its SAs are kept"])
def test_a_peer_that_goes_and_comes_back_with_its_boot_id_is_not_sent_a_number_twice(enrolled, pause):
    lab = enrolled
    spi = lab.cluster.spi("n1")
    metadata = {"name": "n9", "namespace": "kmesh-system"}
    spec = {"spi": spi, "addresses": ["10.10.0.9"], "bootID": "9" * 36, "podCIDRS": []}
    info = {"apiVersion": "kmesh.net/v1alpha1", "kind": "KmeshNodeInfo", "metadata": metadata, "spec": spec}
    state = f"ip -n n1 xfrm state list src {HERE} dst 10.10.0.9"

    def key():
        words = run(state).split()
        return words[words.index("rfc4106(gcm(aes))") + 1] if "rfc4106(gcm(aes))" in words else ""

    lab.cluster.publish(info)
    wait_for("n1 has SAs for it", lambda: bool(key()))
    first, added = key(), run(f"{state} | head -1; ip -n n1 -s xfrm state list src {HERE} dst 10.10.0.9 | grep -m1 add")
    lab.cluster.withdraw("n9")
    time.sleep(pause)
    gone = not key()
    lab.cluster.publish(info)
    try:
        time.sleep(6)
        again = key()
        print(f"after {pause} s: gone {gone}, same key {again == first}")
        if gone:
            assert again != first
        else:
            assert again != first or added == run(
                f"{state} | head -1; ip -n n1 -s xfrm state list src {HERE} dst 10.10.0.9 | grep -m1 add"
            )
    finally:
        lab.cluster.withdraw("n9")
    heal(lab)


def test_a_secret_written_without_the_previous_key_costs_a_restarted_node_no_packet(enrolled):
    import base64  # noqa: PLC0415 # in the VM, each import at the head costs seconds
    import json  # noqa: PLC0415
    import os  # noqa: PLC0415

    import yaml  # noqa: PLC0415

    from tests.lab.traffic import Flow  # noqa: PLC0415

    lab = enrolled
    path, spi = lab.cluster.folder / "secret-kmesh-ipsec.yaml", lab.cluster.spi("n1") + 1
    secret = yaml.safe_load(path.read_text())
    entry = {
        "spi": spi,
        "aeadKeyName": "rfc4106(gcm(aes))",
        "aeadKey": base64.b64encode(os.urandom(36)).decode(),
        "length": 128,
    }
    secret["data"] = {"ipSec": base64.b64encode(json.dumps(entry).encode()).decode()}  # as upstream's CLI does
    with Flow(lab.pod("p1a"), lab.pod("p2a").address(4), 50) as count:
        lab.daemons["n1"].stop()
        lab.cluster.apply("secret-kmesh-ipsec", secret)
        wait_for("n2 has the new key", lambda: lab.cluster.spi("n2") == spi)
        lab.daemons["n1"].start()
        lab.daemons["n1"].wait_ready()
        lab.wait_spi(spi)
        time.sleep(5)
    print(f"no previous key: sent {count.sent} lost {count.lost}")
    assert count.lost == 0
