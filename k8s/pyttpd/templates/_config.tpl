{{/*
The configuration of pyttpd, rendered from the values: whatever Kubernetes doesn't need goes there under its own name, so
that a key of docs/configuration.md is a value of this chart.
*/}}

{{- define "pyttpd.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{/* JSON is TOML, but for one character: the only control character that JSON leaves as it is. */}}
{{- define "pyttpd.toml.value" -}}
{{- toJson . | replace "\x7f" "\\u007f" }}
{{- end }}

{{/* "table", "tables" (a list of them), "null" or "value". */}}
{{- define "pyttpd.toml.kind" -}}
{{- if kindIs "invalid" . }}null
{{- else if kindIs "map" . }}table
{{- else if and (kindIs "slice" .) (gt (len .) 0) }}{{ if kindIs "map" (first .) }}tables{{ else }}value{{ end }}
{{- else }}value
{{- end }}
{{- end }}

{{/* The contents of a table, its own keys before its sub-tables: dict "path" "vhost.blog" "table" $map. */}}
{{- define "pyttpd.toml.table" -}}
{{- $path := .path }}
{{- range $key, $value := .table }}
{{- if eq (include "pyttpd.toml.kind" $value) "value" }}
{{ include "pyttpd.toml.key" $key }} = {{ include "pyttpd.toml.value" $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .table }}
{{- $kind := include "pyttpd.toml.kind" $value }}
{{- $below := include "pyttpd.toml.key" $key }}
{{- if $path }}{{ $below = printf "%s.%s" $path $below }}{{ end }}
{{- if eq $kind "table" }}

[{{ $below }}]
{{- include "pyttpd.toml.table" (dict "path" $below "table" $value) }}
{{- else if eq $kind "tables" }}
{{- range $value }}

[[{{ $below }}]]
{{- include "pyttpd.toml.table" (dict "path" $below "table" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "pyttpd.configuration" -}}
{{- $listen := dict }}
{{- $notListen := splitList " " (include "pyttpd.listenerKeys" .) }}
{{- range $name, $one := (include "pyttpd.listeners" . | fromJson) }}
{{- $table := dict }}
{{- range $key, $value := $one }}{{ if not (has $key $notListen) }}{{ $_ := set $table $key $value }}{{ end }}{{ end }}
{{- $_ := set $listen $name $table }}
{{- end }}
{{- $vhost := dict }}
{{- $notVhost := splitList " " (include "pyttpd.tenantKeys" .) }}
{{- range $name, $one := (include "pyttpd.tenants" . | fromJson) }}
{{- $table := dict }}
{{- range $key, $value := $one }}{{ if not (has $key $notVhost) }}{{ $_ := set $table $key $value }}{{ end }}{{ end }}
{{- $_ := set $vhost $name $table }}
{{- end }}
{{- $metrics := dict "address" .Values.metrics.address "base_port" .Values.metrics.basePort }}
{{- $all := mergeOverwrite (deepCopy .Values.config) (dict "metrics" $metrics "listen" $listen "vhost" $vhost) -}}
# Rendered by the chart from its values. A change of it rolls the pods.
{{- include "pyttpd.toml.table" (dict "path" "" "table" $all) }}
{{- end }}
