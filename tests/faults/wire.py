"""Group 7: what the network does to packets, and what somebody sends who is on it."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable

from tests.faults.keys import newest
from tests.faults.moment import Moment, within
from tests.faults.rows import Excuse, Row
from tests.lab.capture import ESP, ETH_P_ALL
from tests.lab.network import WIRE, inside

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
        "flipped-bits",
        7,
        "a bit is flipped in 5 of 100 frames to n2 (netem)",
        netem("corrupt 5%"),
        Excuse("what fails its integrity check is dropped: RFC 4303", ("n2",)),
    ),
    Row("strangers", 7, "ESP that nobody of ours made is sent to n2, also in n1's name", strangers),
)
