"""Where a view comes from: a cluster, be it a folder of manifests or Kubernetes."""
