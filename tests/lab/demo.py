"""The user guide's five steps on three nodes; scripts/demo runs this where the kernel has ESP."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.lab.cluster import LABEL, ROOT, Cluster, Daemon, wait_for
from tests.lab.kube import KubeCluster, KubeDaemon
from tests.lab.network import Network, run
from tests.lab.traffic import Count, Echo, exchange

START = time.monotonic()
KEY = "secret --key=$(dd if=/dev/urandom count=36 bs=1 2>/dev/null | xxd -p -c 64)"
DAEMON = "./start_kmesh.sh --mode=dual-engine --enable-bypass=false --enable-ipsec=true"
LABELLING = f"kubectl label namespace default {LABEL}=Kmesh"
PAIRS = (("p1a", "p2a"), ("p2b", "p3a"), ("p3b", "p1b"))


def say(text: str) -> None:
    print(f"[{time.monotonic() - START:5.1f} s] {text}", flush=True)


def check(right: bool, step: str, why: str) -> None:
    if not right:
        say(f"FAILED in step {step!r}: {why}")
        sys.exit(1)


class Tcpdump:
    """tcpdump on every uplink while the block runs: what leaves it.

    Not what enters: a packet that was decrypted enters the same device once more, in clear, inside the node.
    """

    def __init__(self, network: Network) -> None:
        self._nodes = [node.name for node in network.nodes]
        self.lines: list[str] = []

    def __enter__(self) -> Tcpdump:
        self._running = [
            subprocess.Popen(
                [
                    "nsenter",
                    f"--net=/run/netns/{node}",
                    "tcpdump",
                    "-l",
                    "-n",
                    "-i",
                    "eth0",
                    "-Q",
                    "out",
                    "esp or udp port 7",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for node in self._nodes
        ]
        for one in self._running:
            assert one.stderr
            while "listening on" not in one.stderr.readline():
                pass
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.5)
        for node, one in zip(self._nodes, self._running, strict=True):
            one.terminate()
            self.lines += [f"{node} eth0: {line}" for line in one.communicate()[0].splitlines()]

    def show(self, most: int = 6) -> None:
        for line in self.lines[:most]:
            print(f"          {line}")
        if len(self.lines) > most:
            print(f"          … {len(self.lines) - most} more lines", flush=True)

    def spis(self) -> set[str]:
        return set(re.findall(r"ESP\(spi=(0x[0-9a-f]{8})", "\n".join(self.lines)))

    def clear(self) -> int:
        return sum("UDP" in line for line in self.lines)

    def directions(self) -> set[str]:
        return set(re.findall(r"IP6? (\S+ > \S+): ESP", "\n".join(self.lines)))


class Folder:
    """The cluster is a folder of manifests."""

    def __init__(self, work: Path, network: Network) -> None:
        self.cluster = Cluster(work / "cluster", network)
        self.daemons = [Daemon(node.name, self.cluster, work) for node in network.nodes]

    def key(self) -> str:
        return run(f"{ROOT}/.venv/bin/kmeshctl --manifests {self.cluster.folder} {KEY}")

    def label(self) -> str:
        self.cluster.namespace({LABEL: "Kmesh"})
        return "the manifest of the namespace has the label now"

    def close(self) -> None:
        """A folder needs none."""


class Kubernetes:
    """The cluster is a real API server, and the steps are the guide's own lines."""

    def __init__(self, work: Path, network: Network) -> None:
        say("starting etcd and kube-apiserver, applying deploy/base")
        self.cluster = KubeCluster(work, network)
        self.daemons = [KubeDaemon(node.name, self.cluster, work, DAEMON) for node in network.nodes]

    def key(self) -> str:
        return self.cluster.sh(f"kmeshctl {KEY}")

    def label(self) -> str:
        return self.cluster.sh(LABELLING)

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()
        self.cluster.close()


def main(kubernetes: bool) -> None:
    """Walk the steps; exits with status 1 at the first that is not as it should be."""
    work = Path(tempfile.mkdtemp(prefix="kmesh-demo-"))
    say("building three nodes with two pods each (network namespaces on one bridge)")
    network = Network(3)
    place = Kubernetes(work, network) if kubernetes else Folder(work, network)
    cluster, daemons = place.cluster, place.daemons
    for node in network.nodes:
        for number, letter in ((10, "a"), (11, "b")):
            cluster.pod(network.add_pod(f"p{node.index}{letter}", node, number))
    echoes = [Echo(pod) for pod in network.pods.values()]

    def traffic(version: int = 4) -> tuple[Tcpdump, Count]:
        total = Count()
        with Tcpdump(network) as seen:
            for source, target in PAIRS:
                count = exchange(network.pods[source], network.pods[target].address(version), 10, 50)
                total.sent, total.received = total.sent + count.sent, total.received + count.received
        return seen, total

    def report(seen: Tcpdump, total: Count) -> None:
        say(f"sent {total.sent}, received {total.received}; tcpdump on the uplinks:")
        seen.show()

    say(f"step 1: kmeshctl {KEY}")
    say(place.key().strip())

    say(f"step 2: {DAEMON}, on every node")
    for daemon in daemons:
        daemon.start()
    for daemon in daemons:
        daemon.wait_ready()
    wait_for("every node announces SPI 1", lambda: all(cluster.spi(node.name) == 1 for node in network.nodes))
    say("three daemons ready, each announces SPI 1")

    say("traffic between pods of different nodes, nobody labelled yet: clear")
    seen, total = traffic()
    report(seen, total)
    check(total.lost == 0 and seen.clear() > 0 and not seen.spis(), "before labelling", "the traffic should be clear")

    say(f"step 3: {LABELLING}")
    say(place.label().strip())
    for daemon in daemons:
        wait_for("managed pods are in the map", lambda d=daemon: "kmesh_pods" in d.text())
    time.sleep(2)

    for version in (4, 6):
        say(f"step 4: the same traffic, IPv{version}: ESP")
        seen, total = traffic(version)
        report(seen, total)
        check(seen.spis() == {"0x00000001"}, "encrypted traffic", f"SPIs on the wire: {seen.spis()}")
        check(seen.clear() == 0, "encrypted traffic", f"{seen.clear()} packets crossed in clear")
        check(len(seen.directions()) == 6, "encrypted traffic", f"directions: {seen.directions()}")
        check(total.lost == 0, "encrypted traffic", f"{total.lost} packets lost")

    say(f"step 5: kmeshctl {KEY}")
    say(place.key().strip())
    wait_for("every node announces SPI 2", lambda: all(cluster.spi(node.name) == 2 for node in network.nodes))
    for daemon in daemons:
        # A node moves towards a peer when it has seen that peer's announcement.
        wait_for(
            f"{daemon.node} sends with SPI 2 only",
            lambda d=daemon: "spi 0x00000001" not in run(f"ip -n {d.node} xfrm policy"),
        )
    seen, total = traffic()
    report(seen, total)
    check(seen.spis() == {"0x00000002"}, "key replaced", f"SPIs on the wire: {seen.spis()}")
    check(seen.clear() == 0 and total.lost == 0, "key replaced", f"{seen.clear()} clear, {total.lost} lost")

    for daemon in daemons:
        daemon.stop()
    with ThreadPoolExecutor() as pool:
        for daemon, done in zip(daemons, pool.map(lambda daemon: daemon.uninstall(), daemons), strict=True):
            check(done.returncode == 0, "uninstall", f"on {daemon.node}: {done.stderr}")
    for echo in echoes:
        echo.close()
    place.close()
    network.close()
    say("done: all five steps as they should be")


if __name__ == "__main__":
    main("--kubernetes" in sys.argv[1:])
