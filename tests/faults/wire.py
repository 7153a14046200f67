# SPDX-License-Identifier: Apache-2.0
"""Group 7: what the network does to packets, and what somebody sends who is on it."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Callable

from tests.faults.flows import MAGIC
from tests.faults.keys import newest
from tests.faults.moment import Moment, within
from tests.faults.rows import Excuse, Row
from tests.lab.capture import ESP, ETH_P_ALL
from tests.lab.network import WIRE, inside, run, socket_in
from tests.lab.traffic import FAMILY

REPLAY_WINDOW, AHEAD, DISCARD = 4096, 5000, 9
"""The daemon's default in packets; more than that; a port that nobody listens at."""
BEFORE_THE_END = 150
"""How many packets before 2^32 an SA counts from: two or three seconds of traffic."""
NETLINK_XFRM, XFRM_MSG_NEWAE, XFRMA_REPLAY_ESN_VAL = 6, 0x1E, 23  # linux/netlink.h, linux/xfrm.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE = 1, 4, 0x100
RECORDED, LASTS = 3.0, 6.0
"""Seconds of recording, and that a disturbance of the wire lasts."""


def recorded(port: str, seconds: float) -> list[bytes]:
    """Give the frames with ESP in IPv4 that a node sends meanwhile."""
    with inside(WIRE), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as listener:
        listener.bind((port, ETH_P_ALL))
        listener.settimeout(0.5)
        until, frames = time.monotonic() + seconds, []
        while time.monotonic() < until:
            try:
                frame, (_, _, kind, *_) = listener.recvfrom(2048)
            except TimeoutError:
                continue
            if kind != socket.PACKET_OUTGOING and frame[12:14] == b"\x08\x00" and frame[23] == ESP:
                frames.append(frame)
    return frames


def injected(frames: list[bytes], port: str) -> None:
    """Send frames to a node, from the wire."""
    with inside(WIRE), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((port, 0))
        for frame in frames:
            raw.send(frame)


def replayed(moment: Moment) -> None:
    frames = [one for one in recorded("u1", RECORDED) if one[30:34] == socket.inet_aton("10.10.0.2")]
    for _ in range(3):
        injected(frames, "u2")
        moment.happened()
        time.sleep(1)
    moment.note(f"{len(frames)} frames were sent again, three times")


def netem(what: str) -> Callable[[Moment], None]:
    """Disturb what n2 gets."""

    def act(moment: Moment) -> None:
        within(WIRE, f"tc qdisc add dev u2 root netem {what}")
        moment.happened()
        time.sleep(LASTS)
        told = within(WIRE, "tc -s qdisc show dev u2")
        # What a qdisc still holds goes with it.
        within(WIRE, "tc qdisc change dev u2 root netem delay 0ms; sleep 0.5; tc qdisc del dev u2 root")
        moment.happened()
        passed = re.search(r"Sent \d+ bytes (\d+) pkt", told)
        moment.note(f"{passed[1] if passed else 'no'} frames passed the disturbed wire")

    return act


def strangers(moment: Moment) -> None:
    """ESP that nobody of ours made: from an unknown address, and from n1's, with the SPI in force."""
    frames = []
    for source in ("10.10.0.77", "10.10.0.1"):
        payload = struct.pack("!II", newest(moment), 9) + bytes(48)
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, ESP, 0)
        header += socket.inet_aton(source) + socket.inet_aton("10.10.0.2")
        words = sum(struct.unpack("!10H", header))
        total = ~((words & 0xFFFF) + (words >> 16)) & 0xFFFF
        header = header[:10] + total.to_bytes(2, "big") + header[12:]
        frames += [b"\x02\0\0\0\0\x02\x02\0\0\0\0\x09\x08\x00" + header + payload] * 200
    injected(frames, "u2")
    moment.happened()
    moment.note(f"{len(frames)} packets were sent")


def late(moment: Moment) -> None:
    """Hold back what n1 sends to n2 for a moment, and hand it over when thousands of packets have gone ahead."""
    rule = "ether type ip ip saddr 10.10.0.1 ip daddr 10.10.0.2 ip protocol esp drop"
    held = f"table netdev late {{ chain hold {{ type filter hook ingress device u1 priority 0; {rule}; }}; }}"
    within(WIRE, "nft -f -", held)
    try:
        frames = recorded("u1", 1.0)
    finally:
        within(WIRE, "nft delete table netdev late")
    go_ahead(moment, 4)
    injected([one for one in frames if one[30:34] == socket.inet_aton("10.10.0.2")], "u2")
    moment.happened()
    moment.note(f"{len(frames)} frames came {AHEAD} packets late")


def go_ahead(moment: Moment, version: int) -> None:
    """Have n1 send to n2 more packets than the window is wide."""
    here, there = (moment.lab.pod(name).address(version) for name in ("p1a", "p2a"))
    with socket_in("p1a", FAMILY[version], socket.SOCK_DGRAM) as sender:
        sender.bind((here, 0))
        for number in range(AHEAD):
            sender.sendto(MAGIC, (there, DISCARD))
            if number % 50 == 0:  # in bursts that no queue is too short for
                time.sleep(0.02)


def near_the_end(moment: Moment) -> None:
    """Let n1's SAs count on from shortly before 2^32: with extended sequence numbers they count past it.

    Before that, more packets than the window is wide: a receiver that has seen fewer takes numbers near 2^32 for ones from
    before its own first (RFC 4304's appendix A2.1, xfrm_replay_seqhi), and rightly so.
    """
    for version in FAMILY:
        go_ahead(moment, version)
    moment.prepared()
    for source, target in (("10.10.0.1", "10.10.0.2"), ("fd00:10::1", "fd00:10::2")):
        count_from("n1", source, target, newest(moment), BEFORE_THE_END)
    moment.happened()

    def past() -> bool:
        found = (run(f"ip -n n1 -s xfrm state list src {one}1 dst {one}2") for one in ("10.10.0.", "fd00:10::"))
        return all("oseq-hi 0x1" in text for text in found)

    moment.meanwhile("n1 has counted past 2^32", past)
    time.sleep(2)
    moment.note(f"n1 counted from 2^32 - {BEFORE_THE_END} on, and past it")


def count_from(node: str, source: str, target: str, spi: int, before: int) -> None:
    """Set what an outbound SA with ESN counts from, as who moves it to another machine does: XFRM_MSG_NEWAE of xfrm(7)."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET

    def packed(address: str) -> bytes:
        return socket.inet_pton(family, address).ljust(16, b"\0")

    identity = packed(target) + struct.pack("!I", spi) + struct.pack("=HBx", family, ESP)
    words = REPLAY_WINDOW // 32
    number = (1 << 32) - before
    state = struct.pack("=6I", words, number, 0, 0, 0, REPLAY_WINDOW) + bytes(4 * words)
    attribute = struct.pack("=HH", 4 + len(state), XFRMA_REPLAY_ESN_VAL) + state
    body = identity + packed(source) + struct.pack("=II", 0, 0) + attribute
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE
    with socket_in(node, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM) as asked:
        asked.send(struct.pack("=IHHII", 16 + len(body), XFRM_MSG_NEWAE, flags, 1, 0) + body)
        error = struct.unpack_from("=i", asked.recv(4096), 16)[0]
    if error:
        raise OSError(-error, f"XFRM_MSG_NEWAE for {source} > {target}: {os.strerror(-error)}")


ROWS = (
    Row("replay", 7, f"all that n1 sends to n2 in {RECORDED:.0f} s is sent again, three times", replayed),
    Row("duplicated", 7, "the wire doubles half of the frames to n2 (netem)", netem("duplicate 50%")),
    Row(
        "reordered",
        7,
        "frames to n2 come 50 ms late, but for every other one, which comes at once: within the window",
        netem("delay 50ms reorder 50% gap 2"),
    ),
    Row(
        "late-beyond-window",
        7,
        f"what n1 sends to n2 in a second is handed over {AHEAD} packets later: beyond the window",
        late,
        Excuse("what comes later than the window is wide is dropped: RFC 4303, 3.4.3", ("n1",)),
    ),
    Row(
        "sequence-wraps",
        7,
        "n1's SAs to n2 count on from shortly before 2^32, and past it",
        near_the_end,
    ),
    Row(
        "flipped-bits",
        7,
        "a bit is flipped in 5 of 100 frames to n2 (netem)",
        netem("corrupt 5%"),
        Excuse("what fails its integrity check is dropped: RFC 4303", ("n2",)),
    ),
    Row("strangers", 7, "ESP that nobody of ours made is sent to n2, also in n1's name", strangers),
)
