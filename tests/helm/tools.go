//go:build tools

// Package helm pins what deploy/chart is rendered and installed with.
package helm

import _ "helm.sh/helm/v4/cmd/helm"
