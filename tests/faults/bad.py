# SPDX-License-Identifier: Apache-2.0
"""Group 5: objects that are not as anybody would write them."""

from __future__ import annotations

import base64
import copy
import json
import random
import time
from collections.abc import Callable
from typing import Any

import yaml

from tests.faults.moment import Moment
from tests.faults.rows import Row
from tests.lab.cluster import node_manifest, pod_manifest

OBJECTS, AT_ONCE = 200, 20
"""Bad objects that a row writes, and how many of them at a time: each time is a pass, and under emulation that takes a second."""
MANY, MANY_AT_ONCE = 10_000, 100
OLD, NEW = "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"
"""Of two pods with one address the younger yields, and an API server, not who writes an object, says when that was."""
JUNK: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 1 << 70, "", "x" * 5000, [], {}, [[]], ["a"], {"a": "b"}, "\N{NULL}", "☃"),
    *("n1", "default", "10.244.2.10", "10.10.0.2", "fd00:10::2", "fe80::1%eth0", "0.0.0.0/0", "::/0", "999.1.1.1"),
)
FILE = "secret-kmesh-ipsec"
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""libyaml's where it is: 10,000 objects take Python's own ten minutes under emulation."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Give the paths to everything in a manifest, but for what it is."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    kept = ((), ("kind",), ("apiVersion",), ("metadata",), ("metadata", "name"), ("metadata", "creationTimestamp"))
    found = [] if path in kept else [path]
    return found + [one for key, inner in items for one in places(inner, (*path, key))]


def spoiled(dice: random.Random, manifest: dict[str, Any]) -> dict[str, Any]:
    """Give a copy of which one to three things are junk, or gone."""
    made = copy.deepcopy(manifest)
    for _ in range(dice.randint(1, 3)):
        left = places(made)
        if not left:
            break
        *way, last = dice.choice(left)
        inner: Any = made
        for key in way:
            inner = inner[key]
        if dice.random() < 0.2:
            del inner[last]
        else:
            inner[last] = dice.choice(JUNK)
    return made


def others(count: int, at_once: int) -> Callable[[Moment], None]:
    """Write objects beside those that are there, of nodes and pods that are not, in the names of those that are."""

    def act(moment: Moment) -> None:
        dice, lab = moment.random, moment.lab
        for pod in lab.network.pods.values():
            moment.undo.append(lambda one=pod: lab.cluster.pod(one))  # type: ignore[misc]
            lab.cluster.put(created(pod_manifest(pod), OLD))
        good = [
            lab.cluster.info("n2"),
            created(node_manifest(lab.network.nodes[1]), NEW),
            created(pod_manifest(lab.pod("p2a")), NEW),
            created(pod_manifest(lab.pod("p1b"), {"istio.io/dataplane-mode": "Kmesh"}), NEW),
        ]
        try:
            for number in range(count):
                one = copy.deepcopy(dice.choice([manifest for manifest in good if manifest]))
                name = f"fuzz-{number % at_once}"
                one["metadata"]["name"] = name
                text = yaml.dump(spoiled(dice, one), Dumper=DUMPER)
                # Now and then what is there ends in the middle, as of an editor that writes in place.
                (lab.cluster.folder / f"{name}.yaml").write_text(
                    text[: dice.randrange(len(text))] if dice.random() < 0.1 else text
                )
                if number % at_once == at_once - 1:
                    time.sleep(1)
        finally:
            for number in range(at_once):
                lab.cluster.remove(f"fuzz-{number}")
        moment.happened()
        moment.note(f"{count} objects were written, {at_once} at a time")

    return act


def created(manifest: dict[str, Any], when: str) -> dict[str, Any]:
    """Give an object with the time at which the API server made it."""
    manifest["metadata"]["creationTimestamp"] = when
    return manifest


def secrets(moment: Moment) -> None:
    """The key's own object, spoiled; then it is as it was."""
    path = moment.lab.cluster.folder / f"{FILE}.yaml"
    before = path.read_text()
    good = yaml.safe_load(before)
    entry = json.loads(base64.b64decode(good["data"]["ipSec"]))
    try:
        for _ in range(OBJECTS // AT_ONCE):
            bad = copy.deepcopy(good)
            if moment.random.random() < 0.7:
                inner = json.dumps(spoiled(moment.random, entry))
                bad["data"]["ipSec"] = base64.b64encode(inner.encode()).decode()
            else:
                bad = spoiled(moment.random, bad)
                bad["metadata"] = good["metadata"]
            moment.lab.cluster.apply(FILE, bad)
            time.sleep(1)
    finally:
        moment.lab.cluster.apply(FILE, good)
    moment.happened()
    moment.note(f"{OBJECTS // AT_ONCE} Secrets were written")


ROWS = (
    Row(
        "objects-spoiled",
        5,
        f"{OBJECTS} KmeshNodeInfos, Nodes and Pods with junk in them come and go",
        others(OBJECTS, AT_ONCE),
    ),
    Row(
        "objects-spoiled-10000",
        5,
        f"{MANY} KmeshNodeInfos, Nodes and Pods with junk in them come and go",
        others(MANY, MANY_AT_ONCE),
        seconds=1500,
    ),
    Row("secrets-spoiled", 5, f"the Secret is {OBJECTS // AT_ONCE} times one with junk in it", secrets),
)
