# SPDX-License-Identifier: Apache-2.0
"""Outcomes -> docs/faults.md, and the JSON beside it. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tests.faults.rows import GROUPS, HEALED, Outcome, Row, Soak, misses, outcome, soak

HEAD = """\
# What every bad day costs

Written by `scripts/faults` from what it measured, with [the figures](faults.json); `scripts/faults --list` names the rows,
`--row NAME` runs some of them. Three nodes with two pods each, everything managed, strict; n1 has its programs on TCX links, n2 as clsact
filters (on kernels before 6.6 all have), n3's pods are behind a bridge. All the time each node sends to each other, over IPv4 and IPv6, numbered
UDP datagrams (10 a second) and pings (2 a second), and two TCP connections carry data. A row lasts until nothing was lost for two seconds.

A row may have traffic of its own beside (who asks a Service, say); it is counted with the rest. Other people's programs that rows need, strongSwan and
iptables, are Debian's packages: `scripts/faults` fetches them with apt, says so, and installs them nowhere.

* **lost**: numbered packets that never arrived, of **sent**; of pings the answer counts. **gap**: the longest time in which a flow got nothing;
  pings are half a second apart, so that is the least, and row `quiet` says what the machine makes of it by itself.
* **in clear**: frames on the wire with the packets' contents, or between pod addresses, that are no ESP. Every frame is looked at.
* **healed**: from the last thing that was done to the last packet lost, or to when what had to be put right was right, if that is later; the goal is {healed:g} s, on
  an emulated machine as many times more as a loop of Python's takes longer there than on its host. Starting a daemon takes half a minute there, and is in no figure but **sent**.
* **TCP**: the longest time without a byte; connections that broke. A goal for each row: none.
* Goals: nothing lost but what the row says must be, and then only of the nodes that it names; nothing in clear; nothing accepted twice; healed in time.
"""
NO_SOAK = "A soak, rows at random for half an hour (`scripts/faults --soak 30 --seed N`), was not run yet.\n"


def read(text: str) -> tuple[Outcome, ...]:
    """Give what :func:`write` was given."""
    return tuple(outcome(one) for one in json.loads(text)["outcomes"]) if text else ()


def soaks(text: str) -> tuple[Soak, ...]:
    """Give the soaks that :func:`write` was given."""
    return tuple(soak(one) for one in json.loads(text).get("soaks", ())) if text else ()


def write(outcomes: Iterable[Outcome], soaked: Iterable[Soak] = ()) -> str:
    """Give the JSON: an outcome a line, then the soaks."""
    lines, last = (",\n".join(json.dumps(one.plain()) for one in some) for some in (outcomes, soaked))
    return f'{{"outcomes": [\n{lines}\n], "soaks": [\n{last}\n]}}\n'


def merged(before: Sequence[Outcome], new: Sequence[Outcome], rows: Sequence[Row]) -> tuple[Outcome, ...]:
    """Put new outcomes in the place of those of the same rows and kernels; those of rows that are no more go."""
    latest = {(one.series, one.row): one for one in (*before, *new)}
    order = {row.name: place for place, row in enumerate(rows)}
    return tuple(
        latest[key]
        for key in sorted(
            (key for key in latest if key[1] in order), key=lambda key: (_version(key[0]), order[key[1]]), reverse=False
        )
    )


def _version(series: str) -> tuple[int, ...]:
    return tuple(-int(part) for part in series.split("."))  # the newest first


def render(outcomes: Sequence[Outcome], rows: Sequence[Row], soaked: Sequence[Soak] = ()) -> str:
    """Give the page."""
    parts = [HEAD.format(healed=HEALED), *([_soak(one) for one in soaked] or [NO_SOAK])]
    for series in dict.fromkeys(one.series for one in outcomes):
        parts.append(_kernel(series, {one.row: one for one in outcomes if one.series == series}, rows))
    return "\n".join(parts)


def _soak(was: Soak) -> str:
    """Tell of a soak, and give the command that draws the same rows."""
    lines = [
        f"## A soak: {was.minutes:g} minutes of rows at random",
        f"{was.machine}; {was.machine.commit}, {was.machine.when}; `scripts/faults --soak {was.minutes:g} --seed {was.seed}`.",
        f"{sum(was.rows.values())} rows, {len(was.rows)} different ones; sent {was.sent}, lost {was.lost}, {was.unexcused} of them between nodes that "
        f"the row does not name; accepted twice {was.twice}; in clear {was.clear}; healed after {was.healed:g} s at most.",
        "",
        "run: " + ", ".join(f"`{name}` {count}" for name, count in sorted(was.rows.items())),
        "",
        *(f"* missed: {one}" for one in was.missed),
        "",
    ]
    return "\n".join(lines)


def _kernel(series: str, by_row: Mapping[str, Outcome], rows: Sequence[Row]) -> str:
    machines = dict.fromkeys(str(one.machine.kernel) for one in by_row.values())
    slow = [one.machine.slowness for one in by_row.values() if one.machine.emulated]
    emulated = (
        f", emulated (QEMU without KVM, two processors), {min(slow):.0f} to {max(slow):.0f} times slower than its host"
        if slow
        else ""
    )
    lines = [f"## Linux {series}", f"{', '.join(machines)}{emulated}.", ""]
    kernel = tuple(map(int, series.split(".")))
    if left := [row.name for row in rows if row.is_of(kernel) and row.name not in by_row]:
        lines += [f"Not run on it yet: {', '.join(f'`{name}`' for name in left)}.", ""]
    for group, title in GROUPS.items():
        ours = [row for row in rows if row.group == group and row.name in by_row]
        if not ours:
            continue
        lines += [
            f"### {title} ({series})",
            "| row | what is done | sent | lost | gap | in clear | healed | TCP | goals | measured |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *(_line(row, by_row[row.name]) for row in ours),
            "",
            *(text for row in ours for text in _details(row, by_row[row.name])),
            "",
        ]
    return "\n".join(lines)


def _line(row: Row, was: Outcome) -> str:
    span, missed = was.span, misses(row, was)
    tcp = f"{span.stall} ms" + (f", {span.broken} broke" if span.broken else "")
    cells = (
        f"`{row.name}`",
        row.what,
        str(span.sent),
        str(span.lost),
        f"{span.gap} ms",
        str(span.clear),
        f"{was.healed:.1f} of {was.healing_limit:.0f} s",
        tcp,
        f"**missed**: {'; '.join(missed)}"
        if missed
        else "kept"
        if row.shows.name == "GOALS"
        else f"shown: {row.shows.value}",
        f"{was.machine.commit}, {was.machine.when}",
    )
    return f"| {' | '.join(one.replace('|', '/') for one in cells)} |"


def _details(row: Row, was: Outcome) -> list[str]:
    found = []
    if row.excuse:
        found.append(f"may lose packets of {', '.join(row.excuse.nodes)}: {row.excuse.why}")
        found += [f"may be in clear: {row.excuse.clear}"] if row.excuse.clear else []
    if was.span.costs:
        pairs: Counter[tuple[str, str]] = Counter()
        for one in was.span.costs:
            pairs[one.nodes] += one.lost
        found.append("lost: " + ", ".join(f"{a} to {b} {count}" for (a, b), count in sorted(pairs.items()) if count))
    found += was.notes
    if was.errors:
        found.append("XFRM: " + ", ".join(f"{name} {a} → {b}" for name, (a, b) in sorted(was.errors.items())))
    if was.drops:
        found.append("our programs: " + ", ".join(f"{name} {a} → {b}" for name, (a, b) in sorted(was.drops.items())))
    if was.stack:
        found.append("network stack: " + ", ".join(f"{name} {a} → {b}" for name, (a, b) in sorted(was.stack.items())))
    found += [f"said: {one}" for one in was.said]
    return [f"* `{row.name}`", *(f"  * {one}" for one in found)] if found else []
