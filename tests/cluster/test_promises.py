# SPDX-License-Identifier: Apache-2.0
"""The promises of every cluster source, kept over a real API server."""

from tests.contract.test_cluster_source import *  # noqa: F403 # the tests themselves, with this folder's ``opened``
