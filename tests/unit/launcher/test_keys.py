# SPDX-License-Identifier: Apache-2.0
"""Which keys a daemon remembers, and when it reads the Secret."""

import pytest
from kmesh.cluster.secret import KEPT, LONGEST_HISTORY, digest, parse_keys
from kmesh.launcher import keys

from kmesh_bpf import Key
from tests.unit.cluster import kube


@pytest.fixture
def parsed(monkeypatch) -> list[int]:
    found = []
    monkeypatch.setattr(keys, "parse_keys", lambda secret: found.append(1) or parse_keys(secret))
    return found


def replaced(node, number: int) -> None:
    """Replace the key, and let the replacement come to its end."""
    node.key(number)
    node.steps(2)
    for index in (2, 3):
        node.put(kube.node_info(index, number))
    for _ in range(4):
        node.clock.now += 60
        node.steps(2)


def test_the_secret_is_read_when_it_changes_and_not_in_every_pass(node, parsed):
    node.key(1)
    node.steps(5)
    assert len(parsed) == 1
    node.put(kube.pod("another", 2, 11))
    node.steps(5)
    assert len(parsed) == 1
    node.key(2)
    node.steps(5)
    assert len(parsed) == 2


def test_one_that_is_refused_is_refused_once_and_its_successor_is_read(node, parsed):
    node.key(1)
    node.steps(2)
    good = (node.folder / "secret-kmesh-ipsec.yaml").read_text()
    node.put(kube.secret(b"no JSON"))
    node.steps(5)
    assert (len(parsed), node.metric("key_refused")) == (2, 1)
    (node.folder / "secret-kmesh-ipsec.yaml").write_text(good)
    node.steps(2)
    assert (len(parsed), node.metric("key_refused")) == (3, 0)


def test_what_the_secret_holds_and_what_an_sa_uses_is_remembered_and_nothing_else(node):
    last = KEPT + 4
    for number in range(1, last + 1):
        replaced(node, number)
        held = node.daemon.keys
        assert held.known.keys() == held.keyring.keys.keys() == set(range(max(1, number - KEPT), number + 1))
    assert node.ready() == (200, [])
    assert digest(Key(kube.material(1))) in held.used
    assert len(held.used) <= LONGEST_HISTORY


def test_one_that_the_secret_holds_no_more_stays_as_long_as_an_sa_uses_it(node):
    for number in range(1, KEPT + 4):
        node.key(number)
        node.steps(2)
    spis = {sa.spi for sa in node.memory.sas.values()}
    assert 1 in spis, "the peers have not moved"
    assert node.daemon.keys.keyring.keys.keys() == set(range(3, KEPT + 4))
    assert node.daemon.keys.known.keys() == set(range(3, KEPT + 4)) | spis


def test_a_key_that_was_forgotten_is_not_taken_again(node):
    """Though whoever writes the Secret keeps no history."""
    for spi in (1, 2):
        node.put(kube.secret(kube.entry(spi, kube.material(spi))))
        node.steps(2)
        for index in (2, 3):
            node.put(kube.node_info(index, spi))
        for _ in range(4):
            node.clock.now += 60
            node.steps(2)
    held = node.daemon.keys
    assert held.known.keys() == {2}
    node.put(kube.secret(kube.entry(3, kube.material(1))))
    node.steps(2)
    assert "was in force before" in held.refused
    assert held.keyring.current == 2
