{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}
{{- /* Changes the DaemonSet of deploy/base to what the values say; gives no text. Takes a list: the root, the object. */ -}}
{{- define "kmesh-ipsec.daemonset" }}
{{- $root := first . }}
{{- $daemonset := last . }}
{{- $values := $root.Values.deploy.kmesh }}
{{- $pod := $daemonset.spec.template.spec }}
{{- $container := first $pod.containers }}
{{- $repository := $values.image.repository | default $container.image }}
{{- $_ := set $container "image" (printf "%s:%s" $repository ($values.image.tag | default $root.Chart.AppVersion)) }}
{{- with $root.Values.fullnameOverride }}{{ $_ := set $daemonset.metadata "name" . }}{{ end }}
{{- with $values.imagePullPolicy }}{{ $_ := set $container "imagePullPolicy" . }}{{ end }}
{{- with $values.resources }}{{ $_ := set $container "resources" . }}{{ end }}
{{- with $values.containers.kmeshDaemonArgs }}
{{- $_ := set $container "args" (regexSplit "\\s+" (trim .) -1) }}
{{- end }}
{{- with $values.nodeSelector }}{{ $_ := set $pod "nodeSelector" (merge (dict) $pod.nodeSelector .) }}{{ end }}
{{- with $values.imagePullSecrets }}
{{- $secrets := list }}
{{- range . }}{{ $secrets = append $secrets (dict "name" .) }}{{ end }}
{{- $_ := set $pod "imagePullSecrets" $secrets }}
{{- end }}
{{- with $values.image.architectures }}
{{- $term := first $pod.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms }}
{{- $_ := set (first $term.matchExpressions) "values" . }}
{{- end }}
{{- end }}
