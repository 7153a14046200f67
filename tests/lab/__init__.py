# SPDX-License-Identifier: Apache-2.0
"""Three nodes on one machine: network namespaces, daemons, traffic and captures, for the demo and the e2e tests."""
