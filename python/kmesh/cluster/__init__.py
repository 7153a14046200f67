# SPDX-License-Identifier: Apache-2.0
"""Where a view comes from: a cluster, be it a folder of manifests or Kubernetes."""
