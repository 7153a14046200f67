# SPDX-License-Identifier: Apache-2.0
"""What is spoiled stays an object of its kind, by its name and its age, which no writer chooses; the rest may be anything."""

import random

from tests.faults.bad import NEW, created, places, spoiled
from tests.lab.cluster import node_manifest
from tests.lab.network import Node


def test_kind_name_and_age_are_never_spoiled_and_all_else_may_be():
    manifest = created(node_manifest(Node(2)), NEW)
    dice, changed = random.Random(1), set()
    for _ in range(3000):
        bad = spoiled(dice, manifest)
        assert (bad["kind"], bad["apiVersion"], bad["metadata"]) == (
            manifest["kind"],
            manifest["apiVersion"],
            {"name": "n2", "creationTimestamp": NEW},
        )
        changed |= {path for path in places(manifest) if _at(bad, path) != _at(manifest, path)}
    assert changed == set(places(manifest))


def _at(value, path):
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return "gone"
    return value
