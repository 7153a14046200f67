# SPDX-License-Identifier: Apache-2.0
"""The cluster behind a Kubernetes API server: connection, watches, and the source made of them."""
