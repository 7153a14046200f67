"""The cluster behind a Kubernetes API server: connection, watches, and the source made of them."""
