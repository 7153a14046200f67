# SPDX-License-Identifier: Apache-2.0
"""How the cluster is asked: how long a request may take, in whose name, and whether anything is watched."""

import pytest
from kmesh.cluster.kubernetes import connection, source
from kmesh.kmeshctl import opening
from kmesh.kmeshctl.arguments import parser


@pytest.fixture
def opened(monkeypatch):
    """Give what a command line's connection and source are made with."""
    made = {}

    def connect(_kubeconfig, _context, _environment, _rights, asking):
        made["asking"] = asking
        return "a connection"

    monkeypatch.setattr(connection, "connect", connect)
    monkeypatch.setattr(source, "KubernetesCluster", lambda _, **settings: made.update(settings))

    def opened(line):
        made.clear()
        opening.cluster(parser().parse_args(line.split()), {})
        return made

    return opened


@pytest.mark.parametrize(
    ("line", "seconds", "once"),
    [
        ("status", 10, True),
        ("explain a b", 10, True),
        ("secret get", 10, True),
        ("secret create", 0, True),
        ("secret create --wait", 0, False),
        ("secret delete", 0, True),
        ("bundle", 0, True),
        ("status --watch", 5, False),
        ("dashboard", 5, False),
        ("status --request-timeout=30s", 30, True),
        ("status --watch --request-timeout=0", 0, False),
    ],
)
def test_who_looks_is_impatient_and_who_writes_is_not_and_once_is_enough_for_one_look(opened, line, seconds, once):
    made = opened(line)
    assert (made["asking"].timeout, made["once"]) == (seconds, once)


def test_it_is_asked_in_the_name_that_the_line_says(opened):
    asking = opened("status --as=ann --as-group=a --as-group b")["asking"]
    assert (asking.user, asking.groups) == ("ann", ("a", "b"))
    assert opened("status")["asking"].user == ""
