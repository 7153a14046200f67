# SPDX-License-Identifier: Apache-2.0
"""Group 2: the daemon comes and goes, and so does what it knows the cluster from."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.hands import NEW_KEYS
from tests.faults.keys import create, sent_with
from tests.faults.meter import readiness
from tests.faults.moment import SECONDS, Moment
from tests.faults.rows import Excuse, Row
from tests.lab.kernels import TCX
from tests.lab.network import inside, run

HOUR = 3600.0
OPENING = "(struct __sk_buff *skb)\n{"
"""How each program begins."""
AWAY = 60.0
"""Seconds that the cluster's source is away; nothing of ours has a longer time limit than the view's age, which is told after 10 minutes."""


def stopped(number: int) -> Callable[[Moment], None]:
    def act(moment: Moment) -> None:
        moment.daemon("n2").stop(number)
        moment.happened()
        time.sleep(1)
        moment.restart("n2")

    return act


def settings(*flags: str) -> Callable[[Moment], None]:
    def act(moment: Moment) -> None:
        for now in (flags, ()):
            moment.daemon("n2").stop()
            moment.restart("n2", *now)
            moment.happened()

    return act


def other_mask(moment: Moment) -> None:
    moment.note(f"shown: {mark_stays()}")
    settings("--node-mark-mask=0x0fff0000")(moment)


def mark_stays() -> str:
    """Try to give an SA that is in place another mark; tell what the kernel says."""
    state = "ip -n wire xfrm state {} src 192.0.2.1 dst 192.0.2.2 proto esp spi 9 {} mode tunnel aead 'rfc4106(gcm(aes))' 0x{} 128"
    key = "11" * 36
    run(state.format("add", "mark 0x100 mask 0xf00", key))
    try:
        run(state.format("update", "mark 0x200 mask 0xf00", key))
    except RuntimeError as error:
        return f"ip xfrm state update with another mark: {str(error).rpartition(': ')[2]}"
    finally:
        run("ip -n wire xfrm state flush")
    raise RuntimeError("the kernel has given an SA another mark")


def tcx_refused(moment: Moment) -> None:
    """Ask for what the kernel lacks: it is refused by name, and what is in place goes on."""
    daemon = moment.daemon("n1")
    daemon.stop()
    daemon.start("--tc-attach=tcx")
    moment.happened()
    moment.meanwhile("it is refused", lambda: "TCX" in daemon.text(), 2 * SECONDS)
    line = next(one for one in daemon.text().splitlines() if "TCX" in one)
    moment.note(f"said: {line}; the daemon {'goes on' if daemon.process and daemon.process.poll() is None else 'ends'}")
    daemon.stop()
    moment.restart("n1")
    moment.happened()


def other_pin_root(moment: Moment) -> None:
    """On n1, whose programs are TCX links: what is pinned below the former root would run on behind the new ones."""
    daemon = moment.daemon("n1")
    before, links = daemon.pin_root, programs_of_devices()
    for now in (before.with_name("kmesh-n1-other"), before):
        daemon.stop()
        daemon.pin_root = now
        moment.restart("n1")
        moment.happened()
        moment.until("each program runs once", lambda: programs_of_devices() == links)


def programs_of_devices() -> dict[str, int]:
    """Give how many programs run on n1's uplink and a pod's device, by device and direction (TCX; 0 where there is none)."""
    from kmesh_bpf.kernel import bpf  # noqa: PLC0415 # as above

    with inside("n1"):
        return {
            f"{device} {direction}": len(bpf.programs_on(socket.if_nametoindex(device), direction))
            for device in ("eth0", "vp1a")
            for direction in (bpf.TCX_INGRESS, bpf.TCX_EGRESS)
        }


def other_sources(moment: Moment) -> None:
    """Have n2's daemon come back with other C sources, which it compiles and puts in the place of the others; and back."""
    from kmesh_bpf.kernel.programs import source_folder  # noqa: PLC0415 # in the VM, each import at the head costs seconds

    daemon, place = moment.daemon("n2"), source_folder()
    with tempfile.TemporaryDirectory() as work:
        sources = Path(work) / "bpf"
        shutil.copytree(place, sources)
        for file in sources.glob("tc_*.c"):
            text = file.read_text()
            # At the head of each program: a load of the packet's mark that nothing comes of, as of another release.
            other = text.replace(OPENING, OPENING + ' asm volatile("" :: "r"(skb->mark));')
            if other == text:
                raise RuntimeError(f"no program begins as expected in {file.name}")
            file.write_text(other)
        before = programs(moment)
        for ahead in (("unshare", "--mount", "bash", "-ec", f'mount --bind {sources} {place}; exec "$@"', "-"), ()):
            daemon.stop()
            daemon.ahead = ahead
            try:
                moment.restart("n2")
            finally:
                daemon.ahead = ()
            moment.happened()
            moment.meanwhile("n2 has other programs", lambda was=before: programs(moment) != was)  # type: ignore[misc]
            moment.note(f"programs: {before} → {(before := programs(moment))}")


def programs(moment: Moment) -> str:
    """Give by which digest n2's programs go."""
    return " ".join(one.name for one in (moment.daemon("n2").pin_root / "programs").iterdir())


def an_hour_away(moment: Moment) -> None:
    """The clocks of n2's daemon jump by an hour while the source is away: what it remembers is that old, packets go on."""
    daemon, folder = moment.daemon("n2"), moment.lab.cluster.folder
    jump = folder.with_name("later")
    jump.write_bytes(struct.pack("=d", 0.0))

    def as_before() -> None:
        daemon.stop()
        moment.restart("n2")

    daemon.stop()
    daemon.ahead = (
        "env",
        f"PYTHONPATH={Path(__file__).with_name('later')}:{os.environ.get('PYTHONPATH', '')}",
        f"KMESH_FAULTS_LATER={jump}",
    )
    moment.undo.append(as_before)
    try:
        moment.restart("n2")
    finally:
        daemon.ahead = ()
    moment.prepared()
    aside = folder.with_name("aside")
    folder.rename(aside)
    moment.happened()
    time.sleep(5)
    jump.write_bytes(struct.pack("=d", HOUR))
    moment.happened()
    moment.meanwhile("n2 says so", lambda: any("view" in reason or "cluster" in reason for reason in readiness("n2")))
    time.sleep(5)
    aside.rename(folder)
    moment.happened()
    moment.until("n2 sees it again", lambda: readiness("n2") == ())
    spi = create(moment)
    moment.lab.wait_spi(spi)
    sent_with(moment, spi)


def source_away(moment: Moment) -> None:
    folder = moment.lab.cluster.folder
    aside = folder.with_name("aside")
    folder.rename(aside)
    moment.happened()
    time.sleep(AWAY)
    aside.rename(folder)
    moment.happened()


def source_older(moment: Moment) -> None:
    """Everything as it was before a replacement, but for what nodes write themselves."""
    folder = moment.lab.cluster.folder
    aside = folder.with_name("older")
    shutil.copytree(folder, aside)
    spi = create(moment)
    moment.lab.wait_spi(spi)
    sent_with(moment, spi)
    for file in aside.glob("*.yaml"):
        file.rename(folder / file.name)
    shutil.rmtree(aside)
    moment.happened()
    time.sleep(5)
    newer = create(moment)
    moment.lab.wait_spi(newer)
    sent_with(moment, newer)


ROWS = (
    Row("daemon-term", 2, "SIGTERM to n2's daemon, a second, start", stopped(signal.SIGTERM)),
    Row("daemon-kill", 2, "kill -9 of n2's daemon, a second, start", stopped(signal.SIGKILL)),
    Row(
        "daemon-programs",
        2,
        "n2's daemon comes back with --permissive, other programs, then without",
        settings("--permissive"),
    ),
    Row(
        "daemon-window",
        2,
        "n2's daemon comes back with --replay-window=64, then without",
        settings("--replay-window=64"),
        Excuse(
            "the window is part of an SA, another one means other keys, and peers hear of them a moment later", ("n2",)
        ),
    ),
    Row(
        "daemon-mask",
        2,
        "n2's daemon comes back with --node-mark-mask=0x0fff0000, then without",
        other_mask,
        Excuse(
            "an SA is found by its mark, and the kernel cannot change that of one in place (xfrm_state_update); another one beside it "
            "has not seen the packets that the first has, and would accept them again: so it has another key, and peers hear of it "
            "a moment later",
            ("n2",),
        ),
    ),
    Row(
        "daemon-tcx-refused",
        2,
        "n1's daemon comes back with --tc-attach=tcx on a kernel without TCX, which it refuses by name; then without",
        tcx_refused,
        quick=True,
        until=TCX,
    ),
    Row(
        "daemon-pin-root",
        2,
        "n1's daemon comes back with another --pin-root, then with the one before",
        other_pin_root,
        Excuse("which keys were in use is kept below the pin root; " + NEW_KEYS, ("n1",)),
        seconds=200,
    ),
    Row("daemon-sources", 2, "n2's daemon comes back with other C sources, then with the ones before", other_sources),
    Row(
        "source-away-an-hour",
        2,
        f"the cluster's source is away, and the clocks of n2's daemon jump by {HOUR / 3600:.0f} h; it is back, and the key is replaced",
        an_hour_away,
    ),
    Row("source-away", 2, f"the cluster's source is away for {AWAY:.0f} s", source_away),
    Row(
        "source-older",
        2,
        "a key is replaced, then all objects are as they were before it, then it is replaced again",
        source_older,
    ),
)
