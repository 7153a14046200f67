# SPDX-License-Identifier: Apache-2.0
"""The user guide's five steps on three nodes; scripts/demo runs this where the kernel has ESP."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.lab.cluster import LABEL, ROOT, Cluster, Daemon, wait_for
from tests.lab.kube import KubeCluster, KubeDaemon
from tests.lab.network import Network, run, sending
from tests.lab.traffic import Count, Echo, exchange

START = time.monotonic()
KEY = "secret --key=$(dd if=/dev/urandom count=36 bs=1 2>/dev/null | xxd -p -c 64)"
DAEMON = "./start_kmesh.sh --mode=dual-engine --enable-bypass=false --enable-ipsec=true"
LABELLING = f"kubectl label namespace default {LABEL}=Kmesh"
PAIRS = (("p1a", "p2a"), ("p2b", "p3a"), ("p3b", "p1b"))


def say(text: str) -> None:
    print(f"[{time.monotonic() - START:5.1f} s] {text}", flush=True)


class Story:
    """What is being shown: whatever goes wrong is told under the newest headline."""

    headline = ""

    def begin(self, headline: str) -> None:
        self.headline = headline
        say(headline)


class WrongError(Exception):
    """A step is not as it should be."""


def check(right: bool, why: str) -> None:
    if not right:
        raise WrongError(why)


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
            said = next((line for line in one.stderr if "listening on" in line), None)
            check(said is not None, "tcpdump ended before it listened")
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.5)
        for node, one in zip(self._nodes, self._running, strict=True):
            one.terminate()
            self.lines += [f"{node} eth0: {line}" for line in one.communicate()[0].splitlines()]

    def show(self, most: int = 3) -> None:
        """Print the first lines of each node, so that both ways are seen."""
        for node in self._nodes:
            lines = [line for line in self.lines if line.startswith(f"{node} ")]
            for line in lines[:most]:
                print(f"          {line}")
            if len(lines) > most:
                print(f"          … {len(lines) - most} more lines of {node}", flush=True)

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
        say(f"the cluster is the folder {self.cluster.folder}; the lines below leave out --manifests and --pin-root")

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


def end(daemon: Daemon) -> None:
    """Leave nothing of a daemon behind, whatever went wrong."""
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.stop()
        daemon.uninstall()


def main(kubernetes: bool) -> int:
    """Walk the steps; gives status 1, and says why, at the first that is not as it should be."""
    story = Story()
    try:
        with ExitStack() as undo:
            walk(kubernetes, story, undo)
    except (WrongError, TimeoutError, RuntimeError, AssertionError, OSError) as error:
        say(f"FAILED in {story.headline!r}: {error}")
        return 1
    say("done: all five steps as they should be")
    return 0


def walk(kubernetes: bool, story: Story, undo: ExitStack) -> None:
    """Walk the steps; ``undo`` takes away what they make.

    Raises:
        WrongError, TimeoutError, RuntimeError: something is not as it should be.

    """
    work = Path(tempfile.mkdtemp(prefix="kmesh-demo-"))
    story.begin("building three nodes with two pods each (network namespaces on one bridge)")
    network = Network(3)
    undo.callback(network.close)
    place = Kubernetes(work, network) if kubernetes else Folder(work, network)
    undo.callback(place.close)
    cluster, daemons = place.cluster, place.daemons
    for daemon in daemons:
        undo.callback(end, daemon)
    for node in network.nodes:
        for number, letter in ((10, "a"), (11, "b")):
            cluster.pod(network.add_pod(f"p{node.index}{letter}", node, number))
    for pod in network.pods.values():
        undo.callback(Echo(pod).close)

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

    story.begin(f"step 1: kmeshctl {KEY}")
    say(place.key().strip())

    story.begin(f"step 2: {DAEMON}, on every node")
    for daemon in daemons:
        daemon.start()
    for daemon in daemons:
        daemon.wait_ready()
    wait_for("every node announces SPI 1", lambda: all(cluster.spi(node.name) == 1 for node in network.nodes))
    say("three daemons ready, each announces SPI 1")

    story.begin("traffic between pods of different nodes, nobody labelled yet: clear")
    seen, total = traffic()
    report(seen, total)
    check(total.lost == 0 and seen.clear() > 0 and not seen.spis(), "the traffic should be clear")

    story.begin(f"step 3: {LABELLING}")
    say(place.label().strip())
    pods = {str(address) for pod in network.pods.values() for address in pod.addresses}
    for daemon in daemons:
        wait_for(f"{daemon.node} knows all managed pods", lambda d=daemon: d.managed() == pods)
    time.sleep(2)

    for version in (4, 6):
        story.begin(f"step 4: the same traffic, IPv{version}: ESP")
        seen, total = traffic(version)
        report(seen, total)
        check(seen.spis() == {"0x00000001"}, f"SPIs on the wire: {seen.spis()}")
        check(seen.clear() == 0, f"{seen.clear()} packets crossed in clear")
        check(len(seen.directions()) == 6, f"directions: {seen.directions()}")
        check(total.lost == 0, f"{total.lost} packets lost")

    story.begin(f"step 5: kmeshctl {KEY}")
    say(place.key().strip())
    wait_for("every node announces SPI 2", lambda: all(cluster.spi(node.name) == 2 for node in network.nodes))
    for daemon in daemons:
        # A node moves towards a peer when it has seen that peer's announcement.
        wait_for(
            f"{daemon.node} sends with SPI 2 only",
            lambda d=daemon: sending(d.node, network) == {"0x00000002"},
        )
    seen, total = traffic()
    report(seen, total)
    check(seen.spis() == {"0x00000002"}, f"SPIs on the wire: {seen.spis()}")
    check(len(seen.directions()) == 6, f"directions: {seen.directions()}")
    check(seen.clear() == 0 and total.lost == 0, f"{seen.clear()} clear, {total.lost} lost")

    story.begin("stopping and uninstalling")
    for daemon in daemons:
        daemon.stop()
    with ThreadPoolExecutor() as pool:
        for daemon, done in zip(daemons, pool.map(lambda daemon: daemon.uninstall(), daemons), strict=True):
            check(done.returncode == 0, f"on {daemon.node}: {done.stderr}")


if __name__ == "__main__":
    sys.exit(main("--kubernetes" in sys.argv[1:]))
