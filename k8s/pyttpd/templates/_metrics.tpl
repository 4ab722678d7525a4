{{/* Every port that metrics are to be had on, as JSON: name (that of the container's port) and port. */}}
{{- define "pyttpd.metricsPorts" -}}
{{- $base := int .Values.metrics.basePort }}
{{- $found := list (dict "name" "metrics-init" "port" $base) (dict "name" "metrics-master" "port" (add $base 1)) (dict "name" "metrics-umaster" "port" (add $base 2)) }}
{{- $position := 0 }}
{{- range $name, $one := (include "pyttpd.listeners" . | fromJson) }}
{{- $found = append $found (dict "name" (printf "metrics-l%d" $position) "port" $one.metrics_port) }}
{{- $position = add1 $position }}
{{- end }}
{{- $found = concat $found (list (dict "name" "metrics-lm" "port" (add $base 9)) (dict "name" "metrics-tenants" "port" (add $base 10))) }}
{{- toJson $found }}
{{- end }}

{{/* What a ServiceMonitor calls endpoints and a PodMonitor podMetricsEndpoints: dict "root" $ "monitor" $settings. */}}
{{- define "pyttpd.endpoints" -}}
{{- $monitor := .monitor }}
{{- range (include "pyttpd.metricsPorts" .root | fromJsonArray) }}
{{- if ne .name "metrics-tenants" }}
- port: {{ .name }}
  path: /metrics
  {{- include "pyttpd.endpoint" $monitor | nindent 2 }}
{{- end }}
{{- end }}
{{- range $name, $one := (include "pyttpd.tenants" .root | fromJson) }}
- port: metrics-tenants
  path: /metrics/{{ $name }}
  {{- include "pyttpd.endpoint" $monitor | nindent 2 }}
{{- end }}
{{- end }}

{{- define "pyttpd.endpoint" -}}
interval: {{ .interval }}
scrapeTimeout: {{ .scrapeTimeout }}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "pyttpd.monitorMetadata" -}}
metadata:
  name: {{ include "pyttpd.fullname" .root }}
  namespace: {{ default .root.Release.Namespace .monitor.namespace }}
  labels:
    {{- include "pyttpd.labels" .root | nindent 4 }}
    {{- with .monitor.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
