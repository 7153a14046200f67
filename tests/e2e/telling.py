# SPDX-License-Identifier: Apache-2.0
"""What a node's daemon reports against itself."""

import json

from tests.lab.cluster import wait_for


def reasons(lab, node):
    """Give the reasons why a node is not ready, and whether it is."""
    done = lab.cluster.kmeshctl("status", "-o", "json")
    rows = {row["node"]: row for row in json.loads(done.stdout)["nodes"]}
    return rows[node]["report"]["reasons"], rows[node]["ready"]


def wait_reason(lab, node, *words):
    """Wait until a node is not ready for a reason in which all words stand."""

    def there():
        found, ready = reasons(lab, node)
        return not ready and any(all(word in one for word in words) for one in found)

    wait_for(f"{node} reports {' '.join(words)}", there)


def wait_ready(lab, node):
    """Wait until a node's daemon has nothing to say against itself."""
    try:
        wait_for(f"{node} is ready", lambda: reasons(lab, node)[1])
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {reasons(lab, node)}") from error
